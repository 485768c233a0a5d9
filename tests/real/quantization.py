"""Every quantization scheme on the real model: perplexity on Wikipedia, accuracy, and what each linear loses.

Texts are BoolQ's passages; scales are calibrated on others than those that are scored. All in float32.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.quantization.int8 import quantize_weight
from graph_gemma.graph_model.quantizer import Float16Report, largest_values
from graph_gemma.graph_model.quantizer.layers import embed, run_layer
from graph_gemma.graph_model.quantizer.ranges import activation_scale, outlier_ratio, sqnr
from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT
from graph_gemma.runners.engine import ScoreRequest
from graph_gemma.runners.io.tokenizer import load_tokenizer
from graph_gemma.runners.llm import LLM
from tests.real.choices import MAX_TOKENS, Answers, Item, answer, compared, read_items
from tests.real.material import Material, run
from tests.real.report import Lines

NUM_TEXTS = 32
CALIBRATED_ON = 16
TOKENS = 96  # of a text
# By name: settings of infer.py, or of quantize.py, which makes a checkpoint first.
AT_LOAD = {
    "floating point": (),
    "w8a16": ("quant=w8a16",),
    "w8a8_dynamic": ("quant=w8a8_dynamic",),
    "w8a8_dynamic, down_proj too": ("quant=w8a8_dynamic", "quant.keep_float=[lm_head]"),
    "w8a8_dynamic, all linears": ("quant=w8a8_dynamic", "quant.keep_float=[]"),
}
WRITTEN = {
    "w8a8": (),
    "w8a8, not smoothed": ("quant.anti_outlier=none",),
    "w8a8, range minmax": ("quant.range=minmax",),
    "w8a8, minmax, not smoothed": ("quant.anti_outlier=none", "quant.range=minmax"),
    "w8a8, down_proj too": ("quant.keep_float=[lm_head]",),
    "w8a8, all linears": ("quant.keep_float=[]",),
}


def check(material: Material) -> Lines:
    tokenizer = load_tokenizer(material.model)
    documents = material.documents("boolq/rc_0shot")
    texts = [request["doc"]["query"].rpartition("\nQuestion:")[0] for request in documents]
    ids = [found for text in texts if len(found := tokenizer(text).input_ids) >= TOKENS]
    sequences = [one[:TOKENS] for one in ids[: NUM_TEXTS + CALIBRATED_ON]]
    scored, calibration = sequences[:NUM_TEXTS], sequences[NUM_TEXTS:]
    items = read_items(material, tokenizer)
    print(f"\n{NUM_TEXTS} texts of {TOKENS} tokens, {len(items)} items; 95 % intervals of the paired differences\n")
    columns = ("scheme", "perplexity", "difference", "equal argmax", "accuracy", "difference, points", "equal choices")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    exact = None
    for name in (*AT_LOAD, *WRITTEN):
        path = material.model if name in AT_LOAD else quantized(material, name, calibration)
        found = score(path, AT_LOAD.get(name, ()), scored, items)
        exact = exact or found
        print(f"| {name} | {row(found, exact)} | {compared(found.answers, exact.answers)} |", flush=True)
    print("\n" + "\n".join(linears_table(material.model, calibration)))
    family = family_of(read_config(material.model))
    report = Float16Report.of(family, largest_values(material.model, calibration), DEFAULT_EXPONENT)
    print("\n" + "\n".join(report.sentences()))
    return [(f"{len(AT_LOAD) + len(WRITTEN)} ways to quantize, tables above", True)]


@dataclass(frozen=True)
class Scored:
    """What a model says of the texts, [texts, tokens], and of the items."""

    logprobs: np.ndarray
    best: np.ndarray
    answers: Answers


def score(path: Path, settings: tuple[str, ...], sequences: list[list[int]], items: list[Item]) -> Scored:
    requests = [ScoreRequest.continuation(ids[:1], ids[1:]) for ids in sequences]
    # Rows of different lengths would be filled up to the longest.
    fixed = ("dtype=float32", "backend=eager", f"max_seq_len={max(TOKENS, MAX_TOKENS)}", "max_prefill_batch_size=1")
    with LLM([f"model.path={path}", *fixed, *settings]) as llm:
        found = llm.score(requests)
        answers = answer(llm, items)
    return Scored(np.stack([one.logprobs for one in found]), np.stack([one.token_ids for one in found]), answers)


def row(found: Scored, exact: Scored) -> str:
    """Perplexity, its difference with the interval over the texts, and the share of equal most likely tokens."""
    per_text = exact.logprobs.mean(1) - found.logprobs.mean(1)
    error = 1.96 * per_text.std(ddof=1) / math.sqrt(len(per_text))
    difference = f"{100 * per_text.mean():+.2f} ± {100 * error:.2f} %" if found is not exact else "-"
    return f"{math.exp(-found.logprobs.mean()):.2f} | {difference} | {np.mean(found.best == exact.best):.1%}"


def quantized(material: Material, name: str, calibration: list[list[int]]) -> Path:
    """The checkpoint that quantize.py writes."""
    tokenizer = load_tokenizer(material.model)
    texts = material.folder / "calibration.jsonl"
    lines = [json.dumps({"prompt": tokenizer.decode(ids, skip_special_tokens=True)}) + "\n" for ids in calibration]
    texts.write_text("".join(lines), encoding="utf-8")
    target = material.folder / "quantized"
    command = [sys.executable, "runners/quantize.py", f"model.path={material.model}", f"output_dir={target}"]
    run([*command, "overwrite=true", "quant=w8a8", f"calibration.file={texts}", *WRITTEN[name]])
    return target


def linears_table(path: Path, sequences: list[list[int]]) -> list[str]:
    """Of each kind of linear, over the layers: its input, and the signal to noise ratio of its output in int8."""
    config = read_config(path)
    family = family_of(config)
    measured: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with open_checkpoint(path, config) as checkpoint:
        hidden = embed(family, checkpoint.read(family.embedding).float(), sequences)
        for index, layer in enumerate(family.layers):
            prefix = f"{family.layer_path(index)}."
            weights = {name: checkpoint.read(prefix + name).float() for name in layer.tensors}
            inputs = run_layer(family, index, weights, hidden)
            for group in layer.groups:
                for linear in group.linears:
                    measured[linear.path].append(measure(inputs[group.paths[0]], weights[linear.weight]))
    lines = [
        "| linear | largest input | largest over median channel | static, dB | per token, dB | weights alone, dB |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in measured.items():
        largest, outliers, *decibels = zip(*rows, strict=True)
        ranges = [f"{min(values):.3g} to {max(values):.3g}" for values in (largest, outliers)]
        lines.append(f"| {' | '.join([name, *ranges, *(f'{statistics.median(one):.1f}' for one in decibels)])} |")
    return lines


@torch.no_grad()
def measure(x: torch.Tensor, weight: torch.Tensor) -> tuple[float, ...]:
    exact = x @ weight.t()
    q, scale = quantize_weight(weight)
    int8 = (q.float() * scale[:, None]).t()
    static = activation_scale(x, "mse", torch.float32).rounded(x)
    step = x.abs().amax(1, keepdim=True) / 127
    per_token = (x / step).round() * step
    found = (sqnr(exact, values @ int8) for values in (static, per_token, x))
    return (x.abs().max().item(), outlier_ratio(x), *found)
