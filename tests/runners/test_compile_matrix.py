"""runners/compile_matrix.py: what it accepts, and the estimates of quantized decode in docs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, import_path

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GEMMA_7B
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.compile_matrix import rows

SOC = "atlas_800i_a2_910b4"
SCHEMES = ("none", "w8a8", "w8a16", "w8a8+kv8")
ARGUMENTS = (f"soc={SOC}", "models=[gemma_7b]", "world_sizes=[1]", "dtypes=[float16]", f"schemes=[{','.join(SCHEMES)}]")
PAGE = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")


def documented() -> list[str]:
    """The table of the page, its header included."""
    rest = PAGE.partition("Atlas 800I A2 (910B4) (Ascend910B4), batch 1, context 2048")[2]
    return rest.partition("\n\n")[2].partition("\n\n")[0].splitlines()


def test_estimates_in_docs_are_at_least_what_reading_takes() -> None:
    assert f"python runners/compile_matrix.py {' '.join(ARGUMENTS)}" in PAGE.replace("\\\n    ", "").replace("'", "")
    header, _, *lines = documented()
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    table = [dict(zip(columns, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]
    assert tuple(row["quantized"] for row in table) == SCHEMES
    rates = find_soc(SOC).rates
    token = 2 * GEMMA_7B.num_hidden_layers * GEMMA_7B.num_key_value_heads
    for row in table:
        vector = GEMMA_7B.head_dim + 4 if row["quantized"].endswith("kv8") else 2 * GEMMA_7B.head_dim
        weights = float(row["weights, GB"])
        room = 0.9 * rates.memory * 1e9 - weights * 1e9
        assert int(row["KV tokens that fit"].replace(",", "")) == pytest.approx(room / (token * vector), rel=0.01), row
        # A tied table is read as the head, but as the embedding only by the row.
        context = 2048 * token * vector / 1e9
        table_again = 2 * GEMMA_7B.vocab_size * GEMMA_7B.hidden_size / 1e9 if row["quantized"] == "w8a16" else 0.0
        reading = (weights - table_again + context) / rates.bandwidth * 1e3
        assert reading <= float(row["ms per token (estimate)"]) <= 1.1 * reading, (row, reading)


@pytest.mark.ascend
@pytest.mark.slow
def test_the_estimates_in_docs_are_what_the_command_prints(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "runners" / "compile_matrix.py"), *ARGUMENTS, f"cache_dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("|")] == documented()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schemes=[w8a8+kv4]", r"schemes: 'w8a8\+kv4' is not known; .* kv8, w8a8\+kv8, w8a8_dynamic\+kv8, w8a16\+kv8"),
        (
            "models=[gemma_9b]",
            r"models is \['gemma_9b'\]; it must be a list of gemma_2b, .* or gemma3_27b",
        ),
        ("batch_size=9223372036854775807", "batch_size is 9223372036854775807; .* at most 65536"),
        ("context=9223372036854775807", "context is 9223372036854775807, but gemma_2b has positions for 8192 tokens"),
        ("prefill_tokens=8193", "prefill_tokens is 8193, but gemma_2b has positions for 8192 tokens"),
        ("world_sizes=[9223372036854775807]", "world_size is 9223372036854775807, which does not fit the model"),
    ],
)
def test_what_no_model_has_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(rows(compose("compile_matrix", [override])))


@pytest.mark.parametrize("schemes", ["[kv8]", "[w8a8_dynamic]"])
def test_what_the_chip_cannot_run_is_refused(schemes: str) -> None:
    settings = compose("compile_matrix", [f"schemes={schemes}", "soc=atlas_300i_duo", "world_sizes=[1]"])
    with pytest.raises(UserError, match="which the Atlas 300I DUO"):
        next(rows(settings))
