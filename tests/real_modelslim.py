"""Load what the real ModelSlim writes, and compare files and answers with ours: python tests/real_modelslim.py.

Installs msmodelslim from the package index into an environment of its own (with torch_npu, but without CANN, the tool
does not start), and quantizes the demo model with both of its generations, on the CPU. Prints what the tool could not
make, how far our logits are from those of the format's formulas and of the tool's own fake-quantized model, what its
reader gives of our checkpoints, what is refused and why, and the tables of docs/checkpoints.md. Exits with 1 where a
line is not as expected or a table differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

# torch_npu without CANN would fail when torch loads it.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_fields import (
    COLUMNS,
    DTYPES,
    PAGE,
    ROOT,
    SCHEMES,
    both_dtypes,
    read_fields,
    render,
    tables_of_page,
)
from support.checkpoints import write_random_checkpoint
from support.modelslim_formulas import formula_logprobs

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantization.scheme import Dialect
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
from graph_gemma.runners.engine.scoring import ScoreRequest
from graph_gemma.runners.io.tokenizer import load_tokenizer
from graph_gemma.runners.llm import LLM

DEMO = ROOT / "runners" / "demo" / "checkpoint"
PACKAGES = ("torch==2.13.0", "transformers==5.24.0", "msmodelslim==26.1.0")
TEXTS = ("One day Grace went to the kitchen. She took the key. She likes red.", "Tell me a story about Sam.")
DIALECTS: tuple[Dialect, ...] = ("vllm_ascend", "atb")
LARGEST_KL = 1e-6  # two float32 computations of the same integers
# A float32 difference moves an activation over a rounding boundary at times; what follows differs by an int8 step.
LARGEST_STEP_KL = 1e-2
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json")


def make_environment(folder: Path) -> Path:
    """The Python of a virtual environment with ModelSlim."""
    python = folder / "environment" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def write_models(folder: Path) -> list[list[int]]:
    """The demo model in each dtype, and one of a layer, small enough for the tool's own texts; ids of the texts."""
    folder.mkdir()
    weights, raw = load_file(DEMO / "model.safetensors"), json.loads((DEMO / "config.json").read_text())
    for dtype in ("float32", *DTYPES):
        (folder / dtype).mkdir()
        stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
        save_file(stored, folder / dtype / "model.safetensors", {"format": "pt"})
        (folder / dtype / "config.json").write_text(json.dumps({**raw, "torch_dtype": dtype}))
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        small = replace(read_config(DEMO), **sizes, head_dim=16, dtype=dtype)  # type: ignore[arg-type]
        write_random_checkpoint(folder / f"small-{dtype}", small)
        for name in SIDE_FILES:
            for target in (dtype, f"small-{dtype}"):
                shutil.copyfile(DEMO / name, folder / target / name)
    tokenizer = load_tokenizer(DEMO)
    ids: list[list[int]] = [tokenizer(text).input_ids for text in TEXTS]
    (folder / "ids.json").write_text(json.dumps(ids))
    return ids


def run_tool(python: Path, models: Path, ours: Path, output: Path) -> dict[str, str | None]:
    """Each checkpoint's name, and the error that making or reading it ended with."""
    output.mkdir()
    script = Path(__file__).parent / "support" / "modelslim_tool.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # Isolated: beside the script lie modules of the names of packages.
    command = [str(python), "-I", str(script), str(models), str(ours), str(output)]
    with (output / "log.txt").open("w") as log:
        subprocess.run(command, cwd=output, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return json.loads((output / "made.json").read_text())


def logprobs(directory: Path, ids: list[list[int]]) -> list[np.ndarray]:
    """Of every token after every position of each text, computed by us in float32."""
    with LLM([f"model.path='{directory}'", "dtype=float32", "backend=eager"]) as llm:
        scores = llm.score([ScoreRequest(row, list(range(len(row)))) for row in ids])
    return [score.logprobs for score in scores]


def divergence(wanted: list[np.ndarray], found: list[np.ndarray]) -> np.ndarray:
    """The KL divergence of each position of the texts."""
    a, b = (np.concatenate(rows).astype(np.float64) for rows in (wanted, found))
    return np.maximum((np.exp(a) * (a - b)).sum(-1), 0)


def describe(wanted: list[np.ndarray], found: list[np.ndarray]) -> str:
    kl = divergence(wanted, found)
    equal = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(wanted, found, strict=True))
    return f"KL {np.median(kl):.0e} (median) to {kl.max():.0e}, {equal} of {len(kl)} tokens equal"


def tool_logprobs(path: Path) -> list[np.ndarray]:
    rows = load_file(path)
    return [torch.log_softmax(rows[str(index)], -1).numpy() for index in range(len(rows))]


def compare_answers(output: Path, ids: list[list[int]]) -> Iterator[tuple[str, str, bool]]:
    for generation in ("newer", "older"):
        for scheme in SCHEMES:
            for dtype in ("float32", *DTYPES):
                name = f"{generation}-{scheme}-{dtype}"
                own = logprobs(output / name, ids)
                formula, tool = formula_logprobs(output / name, ids), tool_logprobs(output / f"{name}.safetensors")
                by_formula, by_tool = describe(formula, own), describe(tool, own)
                # What its fake-quantized models compute besides is said in docs/checkpoints.md.
                same = dtype == "float32" and scheme != "w8a8_dynamic"
                expected = agree(formula, own) and (not same or agree(tool, own))
                yield (
                    name,
                    f"loads; the format's formulas: {by_formula}; the tool's fake-quantized model: {by_tool}",
                    expected,
                )


def agree(wanted: list[np.ndarray], found: list[np.ndarray]) -> bool:
    kl = divergence(wanted, found)
    return bool(np.median(kl) <= LARGEST_KL and kl.max() <= LARGEST_STEP_KL)


REFUSED = {
    "newer-w8a8_mix": "W8A8_MIX",
    "newer-iter_smooth": "the weights were quantized with iter_smooth. ModelSlim takes a norm for w * n",
    "default-float32": "the weights were quantized with iter_smooth. ModelSlim takes a norm for w * n",
    "older-m1": "as ModelSlim's anti-outlier methods write a norm that they smoothed",
    "older-m2": "as ModelSlim's anti-outlier methods write a norm that they smoothed",
}


def refusals(output: Path) -> Iterator[tuple[str, str, bool]]:
    for name, reason in REFUSED.items():
        try:
            LLM([f"model.path='{output / name}'", "backend=eager"]).close()
        except UserError as error:
            yield name, f"refused: {str(error).replace(str(output / name), 'DIR')}", reason in str(error)
        else:
            yield name, "loads", False


def without_its_recipe(output: Path, ids: list[list[int]]) -> Iterator[tuple[str, str, bool]]:
    """What a smoothed checkpoint whose recipe is gone answers: no trace is left, so it loads and is wrong."""
    bare = output / "no-recipe"
    shutil.copytree(output / "newer-iter_smooth", bare, ignore=shutil.ignore_patterns("*_best_practice.yaml"))
    original = logprobs(output.parent / "models" / "float32", ids)
    plain, smoothed = (logprobs(path, ids) for path in (output / "newer-w8a8_dynamic-float32", bare))
    found = f"loads; against the original: {describe(original, smoothed)}; not smoothed: {describe(original, plain)}"
    expected = np.median(divergence(original, smoothed)) > 10 * np.median(divergence(original, plain))
    yield "newer-iter_smooth, recipe removed", found, bool(expected)


def write_ours(models: Path, target: Path, ids: list[list[int]]) -> None:
    """A checkpoint DIALECT-SCHEME-DTYPE of each kind, by runners/quantize.py's own means."""
    target.mkdir()
    for dialect, scheme, dtype in product(DIALECTS, SCHEMES, DTYPES):
        linears = select_linears(read_config(models / dtype), ["lm_head"])
        quantization = Quantization(scheme, linears, stored=True)  # type: ignore[arg-type]
        options = QuantizerOptions(quantization, smooth=False, method="minmax", dialect=dialect)
        quantize_checkpoint(models / dtype, target / f"{dialect}-{scheme}-{dtype}", options, ids)


def read_by_the_tool(ours: Path, output: Path, ids: list[list[int]]) -> Iterator[tuple[str, str, bool]]:
    for dialect, scheme, dtype in product(DIALECTS, SCHEMES, DTYPES):
        name = f"{dialect}-{scheme}-{dtype}"
        if (scheme, dtype) == ("w8a8", "bfloat16"):
            continue  # its reader takes any deq_scale for the bits of a float16 model's: not even its own would do
        tool, own = tool_logprobs(output / f"{name}.safetensors"), logprobs(ours / name, ids)
        # Of W8A8_DYNAMIC it takes scales of its own, from the smallest to the largest activation of each token.
        expected = agree(own, tool) if scheme != "w8a8_dynamic" else np.median(divergence(own, tool)) <= LARGEST_STEP_KL
        yield f"ours, {name}", f"the tool's reader takes it: {describe(own, tool)}", bool(expected)


def tables(ours: Path, output: Path) -> dict[str, list[str]]:
    found = {}
    for scheme in SCHEMES:
        theirs = [{d: read_fields(output / f"{name}-{scheme}-{d}") for d in DTYPES} for name in ("newer", "older")]
        own = [{d: read_fields(ours / f"{name}-{scheme}-{d}") for d in DTYPES} for name in DIALECTS]
        found[scheme] = render(scheme, dict(zip(COLUMNS, map(both_dtypes, [*theirs, *own]), strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep environment and checkpoints in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = make_environment(folder)
        models, ours, output = folder / "models", folder / "ours", folder / "made"
        for old in (models, ours, output):
            shutil.rmtree(old, ignore_errors=True)
        ids = write_models(models)
        write_ours(models, ours, ids)
        made = run_tool(python, models, ours, output)
        wrong = 0
        for name, error in made.items():
            if error is not None:
                print(f"{name}: the tool failed: {error.splitlines()[0]}")
        lines = (
            compare_answers(output, ids),
            read_by_the_tool(ours, output, ids),
            refusals(output),
            without_its_recipe(output, ids),
        )
        for name, found, expected in chain.from_iterable(lines):
            wrong += not expected
            print(f"{name}: {found}{'' if expected else '   <- NOT AS EXPECTED'}", flush=True)
        page = tables_of_page()
        for scheme, lines in tables(ours, output).items():
            print("", *lines, sep="\n")
            if page.get(scheme) != lines:
                wrong += 1
                print(f"{PAGE.relative_to(ROOT)} has another table   <- NOT AS EXPECTED")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
