"""Full-size Gemma on every world size and chip: it lowers, with the collectives and bytes that sharding promises.

The subset that runs by default has every legal pair of model, world size, chip, dtype, scheme and phase in it, on one
layer; the whole matrix is slow. The tables in docs/tensor_parallel.md are checked against the same budgets,
and made again by the slow test.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT, import_path
from support.chip_processes import on_each_chip

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.atlas_300i_duo import ATLAS_300I_DUO
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.chips.registry import CHIPS, find_soc
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.backends.ascend.rank_graph import RankCase, RankStep
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from graph_gemma.runners.compile_matrix import replace_table
from graph_gemma.runners.settings.model_settings import NAMED_CONFIGS

MODELS = ("gemma_2b", "gemma_7b")
BUCKETS = {
    "decode": Bucket("decode", 4, 1, 8),
    "sample": Bucket("decode", 4, 1, 8, "sample", 2),
    "prefill": Bucket("prefill", 1, 128, 0),
    "extend": Bucket("extend", 1, 128, 8),
    "score": Bucket("extend", 2, 64, 8, "score", scored=16),
}
KEPT = ["down_proj", "lm_head"]  # in floating point where others are quantized
Case = tuple[str, int, str, str, str, int]  # model, world size, dtype, scheme, phase, layers

PAIRWISE: dict[str, list[Case]] = {
    "atlas_800i_a2": [
        ("gemma_2b", 1, "bfloat16", "w8a8", "decode", 1),
        ("gemma_2b", 2, "float16", "w8a8", "decode", 1),
        ("gemma_7b", 2, "bfloat16", "none", "prefill", 1),
        ("gemma_7b", 4, "bfloat16", "w8a8", "prefill", 1),
        ("gemma_7b", 8, "bfloat16", "none", "decode", 1),
    ],
    "atlas_300i_duo": [
        ("gemma_7b", 1, "float16", "none", "prefill", 1),
        ("gemma_2b", 2, "float16", "none", "prefill", 1),
        ("gemma_2b", 4, "float16", "none", "decode", 1),
        ("gemma_2b", 8, "float16", "w8a8", "prefill", 1),
    ],
}
# Steps that choose tokens otherwise, later chunks, and second layers, whose nodes are counted.
OTHERS: dict[str, list[Case]] = {
    "atlas_800i_a2": [
        ("gemma_2b", 2, "float16", "none", "sample", 1),
        ("gemma_2b", 4, "float16", "none", "score", 1),
        ("gemma_2b", 2, "float16", "w8a8", "decode", 2),
    ],
    "atlas_300i_duo": [
        ("gemma_7b", 4, "float16", "w8a8", "extend", 1),
        ("gemma_2b", 4, "float16", "none", "decode", 2),
    ],
}
MATRIX: dict[str, list[Case]] = {
    soc.name: [
        (model, world_size, dtype, scheme, phase, layers)
        for model, world_size, dtype, scheme, (phase, layers) in itertools.product(
            MODELS, (1, 2, 4, 8), soc.dtypes, ("none", "w8a8"), (("decode", 1), ("decode", 2), ("prefill", 2))
        )
    ]
    for soc in (ATLAS_800I_A2, ATLAS_300I_DUO)
}


def measure(soc: Chip, case: Case) -> RankStep:
    model, world_size, dtype, scheme, phase, layers = case
    shard = Shard(world_size - 1, world_size)
    kernels = kernel_passes(AscendOptions(soc, "exact"))
    passes = [*build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard), *kernels]
    config = replace(NAMED_CONFIGS[model], num_hidden_layers=layers)
    quantization = None
    if scheme != "none":
        quantization = Quantization(scheme, select_linears(config, KEPT), stored=scheme == "w8a8")  # type: ignore[arg-type]
    step_of = (BUCKETS[phase], KVCacheConfig(64, 64), tuple(passes), shard, quantization)
    return RankCase(config, soc, getattr(torch, dtype), *step_of).measure()


def ideal_bytes(config: GemmaConfig, world_size: int, scheme: str) -> float:
    """The rank's share of the weights, plus what it holds whole: norms, and its key head where they are few.

    16 bit, but for what w8a8 quantizes: all projections but the last of the MLP, 8 bit and a few scales.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    own_kv = 2 * max(kv // world_size, config.head_dim) * hidden
    narrow = (2 * q * hidden + 2 * config.intermediate_size * hidden) / world_size + own_kv
    wide = config.intermediate_size * hidden / world_size + 2 * hidden
    per_layer = (1 if scheme == "w8a8" else 2) * narrow + 2 * wide
    return layers * per_layer + 2 * hidden + 2 * config.vocab_size * hidden / world_size


def check(soc: str, case: Case, found: RankStep) -> None:
    model, world_size, _, scheme, phase, layers = case
    config = replace(NAMED_CONFIGS[model], num_hidden_layers=layers)
    expected = {}
    if world_size > 1:
        # Two per layer and one after the embedding; choosing greedily gathers once, scoring once more; sampling
        # gathers for the draw and for log-probabilities, and says which.
        sampled = phase == "sample"
        expected = {"HcomAllReduce": 2 * layers + 1 + sampled, "HcomAllGather": 1 + (sampled or phase == "score")}
    assert found.collectives == expected, case
    # Of a few kilobytes of zeros, to which a product is added in place.
    zeros = layers * (soc == ATLAS_800I_A2.name and scheme == "w8a8" and world_size > 1)
    assert found.copies == zeros, case
    causal_mask = 2048 * 2048 if soc == ATLAS_800I_A2.name and phase in ("prefill", "extend", "score") else 0
    assert found.weight_bytes - causal_mask == pytest.approx(ideal_bytes(config, world_size, scheme), rel=0.02), case
    kv_heads = max(1, config.num_key_value_heads // world_size)
    assert found.kv_bytes == 2 * layers * kv_heads * config.head_dim * 2, case


def nodes_per_layer(soc: str, model: str, world_size: int, scheme: str) -> int:
    """The budget of a decoder layer in a decode step, collectives included."""
    config = NAMED_CONFIGS[model]
    several, w8a8 = world_size > 1, scheme == "w8a8"
    if soc == ATLAS_800I_A2.name:
        # In w8a8 both norms take their addition and quantize along, and the output projection's input has a quantize;
        # where ranks sum integers, scaling them is a node of its own; where they sum float32, rounding it and a copy of
        # the zeros that the product is added to are.
        return 14 - w8a8 + several * (2 + 3 * w8a8)
    heads = config.num_attention_heads // world_size
    group = heads // max(1, config.num_key_value_heads // world_size)
    # Attention is written out where 4 or 8 query heads share a key head. In w8a8 both norms take their addition, casts
    # and quantize along, and the output projection's input has a quantize.
    return 35 + 9 * (group > 3) - 5 * w8a8 + 2 * several


def check_all(soc: str, cases: list[Case]) -> None:
    """Each case keeps its budgets, and so does the second layer of those that were lowered with one and with two."""
    nodes = {}
    for case in cases:
        found = measure(find_soc(soc), case)
        check(soc, case, found)
        nodes[case] = found.nodes
    twice = [case for case in nodes if case[-1] == 2 and (*case[:-1], 1) in nodes]
    assert twice
    for case in twice:
        model, world_size, _, scheme, _, _ = case
        assert nodes[case] - nodes[(*case[:-1], 1)] == nodes_per_layer(soc, model, world_size, scheme), case


@on_each_chip
def test_a_subset_of_the_matrix_lowers(soc: str) -> None:
    check_all(soc, [*PAIRWISE[soc], *OTHERS[soc]])


def pairs(cases: list[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """Every two values that occur together, each with its place."""
    return {pair for case in cases for pair in itertools.combinations(enumerate(case), 2)}


def test_the_subset_has_every_pair_of_the_matrix() -> None:
    subset, matrix = (
        [(soc, *case[:-1]) for soc, cases in table.items() for case in cases] for table in (PAIRWISE, MATRIX)
    )
    assert pairs(subset) == pairs(matrix)
    assert len(pairs(matrix)) == 79


@pytest.mark.slow
@on_each_chip
def test_the_whole_matrix_lowers(soc: str) -> None:
    check_all(soc, MATRIX[soc])


def documented() -> dict[str, list[dict[str, str]]]:
    """The rows of the tables in docs, by the name of their chip."""
    found: dict[str, list[dict[str, str]]] = {}
    columns: list[str] = []
    for line in (ROOT / "docs" / "tensor_parallel.md").read_text(encoding="utf-8").splitlines():
        chip = next((soc for soc in MATRIX if line.startswith(f"{CHIPS[soc].product} (")), None)
        if chip is not None:
            rows = found.setdefault(chip, [])
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| model | dtype |"):
            columns = cells
        elif line.startswith("| gemma_"):
            rows.append(dict(zip(columns, cells, strict=True)))
    return found


def test_the_tables_in_docs_keep_the_budgets() -> None:
    tables = documented()
    assert set(tables) == set(MATRIX)
    for name, rows in tables.items():
        found = [(row["model"], row["dtype"], int(row["world size"]), row["quantized"]) for row in rows]
        assert sorted(found) == sorted(itertools.product(MODELS, CHIPS[name].dtypes, (1, 2, 4, 8), ("none", "w8a8")))
        for row, (model, _, world_size, scheme) in zip(rows, found, strict=True):
            config = NAMED_CONFIGS[model]
            several = world_size > 1
            assert int(row["nodes per layer"]) == nodes_per_layer(name, model, world_size, scheme), row
            assert int(row["all-reduces"]) == several * (2 * config.num_hidden_layers + 1), row
            assert int(row["other collectives"]) == several, row
            weights = float(row["weights, GB"]) * 1e9
            assert weights == pytest.approx(ideal_bytes(config, world_size, scheme), rel=0.02), row
            kv_heads = max(1, config.num_key_value_heads // world_size)
            kv_bytes = 2 * config.num_hidden_layers * kv_heads * config.head_dim * 2
            assert float(row["KV cache, kB per token"]) == round(kv_bytes / 1e3, 1), row
            room = 0.9 * CHIPS[name].rates.memory * 1e9 - weights
            assert int(row["KV tokens that fit"].replace(",", "")) == pytest.approx(room / kv_bytes, rel=0.01), row


@pytest.mark.ascend
@pytest.mark.slow
@pytest.mark.parametrize("soc", MATRIX)
def test_the_tables_in_docs_are_what_the_command_prints(soc: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / "tensor_parallel.md"
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / "page.md"
    copy.write_text(replace_table(page, soc, "to be written"), encoding="utf-8")
    command = [sys.executable, str(ROOT / "runners" / "compile_matrix.py"), f"soc={soc}", f"write={copy}"]
    environment = {**os.environ, "PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, f"cache_dir={tmp_path}"], env=environment, capture_output=True, text=True, timeout=7200
    )
    assert run.returncode == 0, run.stderr
    assert copy.read_text(encoding="utf-8") == text


def test_a_file_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match=r"write: .*page\.md cannot be read"):
        replace_table(page, "atlas_800i_a2", "")
    page.write_text("before\n<!-- compile_matrix atlas_300i_duo -->\nold\n<!-- end -->\nafter\n")
    with pytest.raises(UserError, match="no place for the table of atlas_800i_a2"):
        replace_table(page, "atlas_800i_a2", "")
    written = "before\n<!-- compile_matrix atlas_300i_duo -->\n\nnew\n\n<!-- end -->\nafter\n"
    assert replace_table(page, "atlas_300i_duo", "new") == written
