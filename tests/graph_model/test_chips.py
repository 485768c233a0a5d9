"""The chips: their names, their tables, and that another one with the same ops is a file and a line."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.chips import with_limits, without

from graph_gemma.graph_model.ascend.legality import check_model, check_quantization
from graph_gemma.graph_model.ascend.ops.attention_choice import choose_attention
from graph_gemma.graph_model.ascend.ops.collective import check_matmul_all_reduce
from graph_gemma.graph_model.ascend.ops.rotary import fused_rotary
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.graph_model.chips.chip import Limits, Rates
from graph_gemma.graph_model.chips.registry import CHIPS, find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.passes.ascend.attention import AscendFusedAttention
from graph_gemma.passes.ascend.flat_attention import AscendFlatAttention
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes

ROOT = Path(__file__).parents[2]
FUSED = "FusedInferAttentionScore"


def test_names_are_found_and_others_refused() -> None:
    assert find_soc("atlas_300i_duo").cann_name == "Ascend310P3"
    with pytest.raises(UserError, match="atlas_800i_a2, atlas_800i_a2_910b4, atlas_300i_duo"):
        find_soc("h100")


def test_a_chip_is_asked_for_ops_that_some_chip_has() -> None:
    known = {op for chip in CHIPS.values() for op in chip.ops}
    asked = set()
    for package in ("graph_model", "passes", "runners"):
        for path in (ROOT / package).rglob("*.py"):
            asked |= set(re.findall(r'\.(?:has|limits)\("(\w+)"\)', path.read_text(encoding="utf-8")))
    assert FUSED in asked
    assert asked <= known


def test_every_file_of_a_chip_is_registered() -> None:
    files = {path.stem for path in (ROOT / "graph_model" / "chips").glob("atlas_*.py")}
    registry = ast.parse((ROOT / "graph_model" / "chips" / "registry.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(registry) if isinstance(node, ast.ImportFrom)}
    assert files
    assert {f"graph_gemma.graph_model.chips.{file}" for file in files} <= imported


def test_the_recipe_for_a_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/recipes.md, "A chip": its file and its line in the registry are all that lowering reads."""
    toy = replace(
        without(ATLAS_800I_A2, FUSED, "GemmaRmsNorm", "DynamicQuant"),
        name="toy_chip",
        product="Toy",
        dtypes=("float16",),
        rates=Rates(1, 2, 1000, 8.0, 16.0, 4.0, 100.0, None),
    )
    toy = with_limits(toy, "RotaryMul", Limits(max_head_dim=64))
    toy = with_limits(toy, "MatmulAllReduce", Limits(ranks=(2,)))
    toy = with_limits(toy, "IncreFlashAttention", Limits(max_head_dim=256, max_grouped_head_dim=64, max_rows=8))
    monkeypatch.setitem(CHIPS, toy.name, toy)

    soc = find_soc("toy_chip")
    check_model(soc, "float16", 256, 8, 1, block_size=64)
    with pytest.raises(UserError, match="soc=toy_chip: dtype is bfloat16; the Toy multiplies"):
        check_model(soc, "bfloat16", 256, 8, 1, block_size=64)
    with pytest.raises(UserError, match="multiples of 16 up to 256"):
        check_model(soc, "float16", 512, 8, 1, block_size=64)
    with pytest.raises(UserError, match="w8a8_dynamic needs DynamicQuant, which the Toy"):
        check_quantization(soc, Quantization("w8a8_dynamic"), 256, 64)
    with pytest.raises(UserError, match="joins 2 devices"):
        check_matmul_all_reduce(soc, 4)
    assert (fused_rotary(soc, 64), fused_rotary(soc, 128)) == (True, False)
    for head_dim, batch, op in ((64, 8, "IncreFlashAttention"), (64, 9, "decomposed"), (128, 1, "decomposed")):
        assert choose_attention(soc, "decode", 64, 8, 1, head_dim, batch).op == op

    attention = {type(each) for each in kernel_passes(AscendOptions(soc, "exact"))}
    assert AscendFlatAttention in attention
    assert AscendFusedAttention not in attention
