"""Full-size Gemma on every world size and chip: it lowers, with the collectives and bytes that sharding promises.

The subset that runs by default has every model, world size, chip, dtype and phase in it; the whole matrix is slow.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rank_graph_cases

from graph_model.ascend.soc import ATLAS_300I_DUO, ATLAS_800I_A2
from graph_model.config import GemmaConfig
from runners.settings import NAMED_CONFIGS

pytestmark = [
    pytest.mark.ascend,
    pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="torch_npu is not installed"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"),
]
ROOT = Path(__file__).parents[3]
Case = tuple[str, int, str, str, int]  # model, world size, dtype, phase, layers

SUBSET: dict[str, list[Case]] = {
    "atlas_800i_a2": [("gemma_7b", 8, "bfloat16", "prefill", 1), ("gemma_2b", 2, "float16", "sample", 1)],
    "atlas_300i_duo": [("gemma_2b", 8, "float16", "decode", 1), ("gemma_7b", 4, "float16", "extend", 1)],
}
MATRIX: dict[str, list[Case]] = {
    soc.name: [
        (model, world_size, dtype, phase, 2)
        for model, world_size, dtype, phase in itertools.product(
            ("gemma_2b", "gemma_7b"), (1, 2, 4, 8), soc.dtypes, ("decode", "prefill")
        )
    ]
    for soc in (ATLAS_800I_A2, ATLAS_300I_DUO)
}


def measure(soc: str, cases: list[Case], cache_dir: Path) -> list[dict[str, Any]]:
    script = Path(rank_graph_cases.__file__)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), soc, str(cache_dir), json.dumps(cases)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def ideal_bytes(config: GemmaConfig, world_size: int) -> float:
    """The rank's share of the weights, 16 bit, plus what it holds whole: norms, and its key head where they are few."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shared = 2 * q * hidden + 3 * config.intermediate_size * hidden
    own_kv = 2 * max(kv // world_size, config.head_dim) * hidden
    parameters = layers * (shared / world_size + own_kv + 2 * hidden) + hidden
    return 2 * (parameters + config.vocab_size * hidden / world_size)


def check(soc: str, case: Case, found: dict[str, Any]) -> None:
    model, world_size, _, phase, layers = case
    assert "error" not in found, (case, found)
    config = replace(NAMED_CONFIGS[model], num_hidden_layers=layers)
    expected = {}
    if world_size > 1:
        # Two per layer and one behind the embedding; choosing greedily gathers once; sampling gathers, and says which.
        sampled = phase == "sample"
        expected = {"HcomAllReduce": 2 * layers + 1 + sampled, "HcomAllGather": 1 + sampled}
    assert found["collectives"] == expected, case
    assert found["copies"] == 0, case
    causal_mask = 2048 * 2048 if soc == ATLAS_800I_A2.name and phase in ("prefill", "extend") else 0
    assert found["weight_bytes"] - causal_mask == pytest.approx(ideal_bytes(config, world_size), rel=0.02), case
    kv_heads = max(1, config.num_key_value_heads // world_size)
    assert found["kv_bytes"] == 2 * layers * kv_heads * config.head_dim * 2, case


@pytest.mark.parametrize("soc", SUBSET)
def test_a_subset_of_the_matrix_lowers(soc: str, tmp_path: Path) -> None:
    for case, found in zip(SUBSET[soc], measure(soc, SUBSET[soc], tmp_path), strict=True):
        check(soc, case, found)


@pytest.mark.slow
@pytest.mark.parametrize("soc", MATRIX)
def test_the_whole_matrix_lowers(soc: str, tmp_path: Path) -> None:
    for case, found in zip(MATRIX[soc], measure(soc, MATRIX[soc], tmp_path), strict=True):
        check(soc, case, found)
