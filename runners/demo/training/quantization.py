"""What quantizing costs the demo model: held-out accuracy and perplexity of every scheme against floating point.

``python -m graph_gemma.runners.demo.training.quantization`` prints the table of docs/quantization.md;
``--write FILE`` puts it there. Besides the demo itself a variant with outliers is measured: small models have none,
large ones do. It computes the same function: some channels of its norms are much larger, and the columns of the next
weights as much smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.checkpoint import Checkpoint, open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
from graph_gemma.graph_model.weights import Part, evaluate
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.comprehension import Item
from graph_gemma.runners.demo.training.evaluate import right_answers, text_losses
from graph_gemma.runners.demo.training.tokenizer import PAD_ID, load_tokenizer
from graph_gemma.runners.demo.world import calibration_texts, held_out_items, held_out_stories

OUTLIER_FACTOR = 100.0
OUTLIER_CHANNELS = 4  # of each norm
_KEEP_FLOAT = ("down_proj", "lm_head")
_ROWS, _BLOCK_SIZE = 32, 64  # batches are padded to this many rows, and to whole blocks of tokens
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
# Without these the graph returns the logits of all tokens.
_OF_LAST_TOKENS = ("last_token", "select_token")


class GraphModel:
    """A checkpoint's rewritten graph as a function of whole sequences, in float32, with reference kernels.

    Sequences are chunks after no earlier context, so that their keys and values are read from the cache.
    """

    def __init__(self, checkpoint: Checkpoint, directory: Path, quantization: Quantization | None) -> None:
        self._checkpoint = checkpoint
        self._config = read_config(directory)
        self._quantization = quantization
        if checkpoint.quantization is not None:
            int8_cache = quantization is not None and quantization.kv8
            self._quantization = replace(checkpoint.quantization, kv8=int8_cache)
        self._graphs: dict[int, tuple[ModelGraph, list[Tensor]]] = {}

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]]) -> Tensor:
        """[rows, tokens, vocab_size] of at most `_ROWS` sequences, padded on the right."""
        longest = max(map(len, sequences))
        tokens = -(-longest // _BLOCK_SIZE) * _BLOCK_SIZE
        if tokens not in self._graphs:
            self._graphs[tokens] = self._graph(tokens)
        graph, weights = self._graphs[tokens]
        ids = torch.full((_ROWS, tokens), PAD_ID)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        lens = torch.tensor([len(sequence) for sequence in sequences] + [1] * (_ROWS - len(sequences)))
        inputs = {
            "input_ids": ids,
            "positions": torch.arange(tokens).expand_as(ids).contiguous(),
            "slot_mapping": torch.arange(_ROWS * tokens).view(_ROWS, tokens),
            "query_lens": lens,
            "context_lens": lens,
            "block_table": torch.arange(_ROWS * tokens // _BLOCK_SIZE).view(_ROWS, -1),
        }
        fakes = [node.meta["val"] for node in graph.placeholders("cache")]
        caches = [torch.zeros(fake.shape, dtype=fake.dtype) for fake in fakes]
        arguments = [*weights, *caches, *(inputs[node.name] for node in graph.placeholders("input"))]
        return graph.module(*arguments)[0][: len(sequences), :longest]

    def _graph(self, tokens: int) -> tuple[ModelGraph, list[Tensor]]:
        width = tokens // _BLOCK_SIZE
        cache_config = KVCacheConfig(_ROWS * width, _BLOCK_SIZE)
        graph = capture(
            self._config, Bucket("extend", _ROWS, tokens, width), cache_config, torch.float32, self._quantization
        )
        run_passes(graph, [cls() for cls in DEFAULT_PASSES if cls.name not in _OF_LAST_TOKENS])
        plan = graph.weight_plan
        tensors = evaluate(plan.values(), self._read, torch.device("cpu"))
        return graph, [tensors[expression] for expression in plan.values()]

    def _read(self, name: str, part: Part | None = None) -> Tensor:
        return self._checkpoint.read(name) if part is None else self._checkpoint.read_slice(name, *part)


@dataclass(frozen=True)
class Scores:
    """Scores of a model on the held-out items and stories."""

    right: list[bool]  # of each item: whether it was answered right
    losses: list[float]  # of each story: the mean negative log-likelihood

    @property
    def accuracy(self) -> float:
        return mean(self.right)

    @property
    def perplexity(self) -> float:
        return math.exp(mean(self.losses))


def measure(
    directory: Path, quantization: Quantization | None, items: Sequence[Item], stories: Sequence[str]
) -> Scores:
    """Scores of a checkpoint, which is quantized at load as `quantization` says; its cache alone, if it is already."""
    tokenizer = load_tokenizer(directory)
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        model = GraphModel(checkpoint, directory, quantization)
        losses = text_losses(model.logits, tokenizer, stories, _ROWS)
        right = right_answers(model.logits, tokenizer, items, _ROWS)
        return Scores(right, [loss / tokens for loss, tokens in losses])


def make_outlier_variant(source: Path, target: Path) -> None:
    """A checkpoint in float32 that computes what `source` does, with outliers in what its linears read."""
    state = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    config = read_config(source)
    generator = torch.Generator().manual_seed(0)
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        for norm, consumers in (
            ("input_layernorm", [f"self_attn.{name}_proj" for name in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            channels = torch.randperm(config.hidden_size, generator=generator)[:OUTLIER_CHANNELS]
            weight = state[f"{prefix}{norm}.weight"]
            weight[channels] = (1 + weight[channels]) * OUTLIER_FACTOR - 1
            for consumer in consumers:
                state[f"{prefix}{consumer}.weight"][:, channels] /= OUTLIER_FACTOR
    target.mkdir(parents=True)
    save_file(state, target / "model.safetensors", {"format": "pt"})
    raw = replace(config, dtype="float32").to_json()
    (target / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())


def quantize_static(source: Path, target: Path, smooth: bool, samples: int = 64) -> None:
    """The w8a8 checkpoint of `source`; without smoothing also without any other choice: min-max ranges."""
    config = read_config(source)
    quantization = Quantization("w8a8", select_linears(config, _KEEP_FLOAT), stored=True)
    options = QuantizerOptions(quantization, smooth=smooth, method="mse" if smooth else "minmax")
    tokenizer = load_tokenizer(source)
    quantize_checkpoint(source, target, options, [tokenizer.encode(text).ids for text in calibration_texts(samples)])


def measure_all(source: Path, items: Sequence[Item], stories: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """Scores by model (demo, outliers) and scheme; the first scheme of each is floating point."""
    config = read_config(source)
    kept = select_linears(config, _KEEP_FLOAT)
    with tempfile.TemporaryDirectory() as folder:
        variant = Path(folder) / "variant"
        make_outlier_variant(source, variant)
        results: dict[str, dict[str, Scores]] = {}
        for model, directory in (("demo", source), ("outliers", variant)):
            results[model] = {"floating point": measure(directory, None, items, stories)}
            for scheme, smooth in (("w8a8", True), ("w8a8, naive", False)):
                target = Path(folder) / f"{model}-{smooth}"
                quantize_static(directory, target, smooth)
                results[model][scheme] = measure(target, None, items, stories)
        int8_cache = Quantization(None, kv8=True)
        results["demo"]["w8a8 + kv8"] = measure(Path(folder) / "demo-True", int8_cache, items, stories)
        whole = select_linears(config, ())
        for scheme, quantization in {
            "w8a8_dynamic": Quantization("w8a8_dynamic", kept),
            "w8a16": Quantization("w8a16", whole),
            "kv8": int8_cache,
            "w8a8_dynamic + kv8": Quantization("w8a8_dynamic", kept, kv8=True),
            "w8a16 + kv8": Quantization("w8a16", whole, kv8=True),
        }.items():
            results["demo"][scheme] = measure(source, quantization, items, stories)
    return results


def table(results: dict[str, dict[str, Scores]]) -> str:
    """The results in Markdown; differences are paired, with the interval of 95 %."""
    lines = ["| model | scheme | accuracy | difference | perplexity | difference |", "|---|---|---|---|---|---|"]
    for model, schemes in results.items():
        reference = next(iter(schemes.values()))
        for scheme, scores in schemes.items():
            accuracy, perplexity = "{:+.2f} ± {:.2f}", "{:+.2f} ± {:.2f} %"
            accuracy = accuracy.format(*accuracy_difference(scores, reference))
            perplexity = perplexity.format(*perplexity_difference(scores, reference))
            if scores is reference:
                accuracy = perplexity = "-"
            lines.append(
                f"| {model} | {scheme} | {100 * scores.accuracy:.1f} % | {accuracy} | {scores.perplexity:.3f} | "
                f"{perplexity} |"
            )
    return "\n".join(lines)


def accuracy_difference(scores: Scores, reference: Scores) -> tuple[float, float]:
    """Points of accuracy above the reference's, paired over the items, and half of the interval of 95 %."""
    points = [100.0 * (a - b) for a, b in zip(scores.right, reference.right, strict=True)]
    return mean(points), _half_interval(points)


def perplexity_difference(scores: Scores, reference: Scores) -> tuple[float, float]:
    """Per cent of perplexity above the reference's, paired over the stories, and half of the interval of 95 %."""
    logs = [a - b for a, b in zip(scores.losses, reference.losses, strict=True)]
    growth = math.exp(mean(logs))
    return 100 * (growth - 1), 100 * growth * _half_interval(logs)


def _half_interval(differences: Sequence[float]) -> float:
    """Half of the mean's interval of 95 %."""
    return 1.96 * stdev(differences) / math.sqrt(len(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and perplexity of the quantized demo model.")
    parser.add_argument("checkpoint_dir", nargs="?", type=Path, default=CHECKPOINT_DIR)
    parser.add_argument("--items", type=int, default=1000, help="held-out items (default 1000)")
    parser.add_argument("--stories", type=int, default=100, help="held-out stories (default 100)")
    parser.add_argument("--write", type=Path, help="a Markdown file; the table takes the place of the one in it")
    args = parser.parse_args()
    text = table(measure_all(args.checkpoint_dir, held_out_items(args.items), held_out_stories(args.stories)))
    print(text)
    if args.write is not None:
        before, _, rest = args.write.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        temporary = args.write.with_name(f".{args.write.name}.new")
        temporary.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
        os.replace(temporary, args.write)


if __name__ == "__main__":
    main()
