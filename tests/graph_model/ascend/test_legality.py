"""What is chosen for a chip, and what is refused with the rule and the legal values."""

from __future__ import annotations

from typing import Any

import pytest

from graph_gemma.graph_model.ascend.legality import check_model, check_quantization
from graph_gemma.graph_model.ascend.ops.attention_choice import check_block_size, choose_attention
from graph_gemma.graph_model.ascend.ops.collective import check_matmul_all_reduce
from graph_gemma.graph_model.ascend.ops.rotary import fused_rotary
from graph_gemma.graph_model.bucket import BLOCK_SIZES
from graph_gemma.graph_model.chips.atlas_300i_duo import ATLAS_300I_DUO
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.chips.registry import CHIPS
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.linears import Quantization

FIA, IFA, PFA = "FusedInferAttentionScore", "IncreFlashAttention", "PromptFlashAttention"
GEMMA_2B, GEMMA_7B = (8, 1), (16, 16)  # query heads, key heads


@pytest.mark.parametrize("soc", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("heads", [GEMMA_2B, GEMMA_7B])
def test_gemma_runs_on_every_chip_in_fp16(soc: Chip, heads: tuple[int, int]) -> None:
    check_model(soc, "float16", 256, *heads, block_size=64)


@pytest.mark.parametrize(
    ("soc", "changes", "message"),
    [
        (ATLAS_300I_DUO, {"dtype": "bfloat16"}, "float16 only. Set dtype=float16"),
        (ATLAS_800I_A2, {"dtype": "float32"}, "float16 or bfloat16 only"),
        (ATLAS_800I_A2, {"head_dim": 72}, "multiples of 16 up to 512"),
        (ATLAS_800I_A2, {"head_dim": 528}, "multiples of 16 up to 512"),
        (ATLAS_800I_A2, {"heads": 3, "kv_heads": 2}, "world size"),
        (ATLAS_800I_A2, {"block_size": 24}, "multiples of 16 up to 512"),
        (ATLAS_300I_DUO, {"block_size": 1024}, "multiples of 16 up to 512"),
        (ATLAS_300I_DUO, {"block_size": 0}, "multiples of 16 up to 512"),
    ],
)
def test_illegal_models_are_refused_with_the_rule(soc: Chip, changes: dict[str, object], message: str) -> None:
    model = {"dtype": "float16", "head_dim": 256, "heads": 8, "kv_heads": 1, "block_size": 64} | changes
    with pytest.raises(UserError, match=message):
        check_model(soc, **model)  # type: ignore[arg-type]


def test_block_sizes_depend_on_query_tokens_and_cache_dtype() -> None:
    check_block_size(ATLAS_800I_A2, 48)
    check_block_size(ATLAS_800I_A2, 384, query_tokens=5)
    with pytest.raises(UserError, match="multiples of 128 up to 512"):
        check_block_size(ATLAS_800I_A2, 64, query_tokens=5)
    with pytest.raises(UserError, match=r"multiples of 32 .*int8"):
        check_block_size(ATLAS_800I_A2, 48, int8_cache=True)


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [({}, "16, 32, 64, 128"), ({"int8_cache": True}, "32, 64, 128"), ({"query_tokens": 5}, "128")],
)
def test_the_block_sizes_that_a_refusal_names_are_legal(rule: dict[str, Any], sizes: str) -> None:
    with pytest.raises(UserError, match=rf"Set block_size={sizes}\.$|Set block_size to one of {sizes}\.$"):
        check_block_size(ATLAS_800I_A2, 24, **rule)
    for size in map(int, sizes.split(", ")):
        assert size in BLOCK_SIZES
        check_block_size(ATLAS_800I_A2, size, **rule)


@pytest.mark.parametrize(
    ("phase", "block_size", "paged", "passes"),
    [
        ("prefill", 64, False, 1),
        ("extend", 64, False, 3),
        ("decode", 64, True, 1),
        ("prefill", 128, True, 1),
        ("extend", 128, True, 1),
        ("decode", 128, True, 1),
    ],
)
def test_attention_on_the_a2(phase: str, block_size: int, paged: bool, passes: int) -> None:
    choice = choose_attention(ATLAS_800I_A2, phase, block_size, 8, 1, 256, batch=4)  # type: ignore[arg-type]
    assert (choice.op, choice.paged, choice.fold, choice.cache_passes) == (FIA, paged, 1, passes)


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize(
    ("phase", "paged", "passes"), [("prefill", False, 1), ("extend", False, 3), ("decode", True, 1)]
)
def test_an_int8_cache_is_paged_in_decode_alone(phase: str, paged: bool, passes: int, block_size: int) -> None:
    choice = choose_attention(ATLAS_800I_A2, phase, block_size, 8, 1, 256, batch=4, int8_cache=True)  # type: ignore[arg-type]
    assert (choice.op, choice.paged, choice.cache_passes) == (FIA, paged, passes)


@pytest.mark.parametrize(
    ("heads", "head_dim", "batch", "op", "fold"),
    [
        (GEMMA_7B, 256, 8, IFA, 1),  # 1:1 is accepted
        ((1, 1), 256, 8, IFA, 1),  # Gemma-2B on eight ranks
        ((2, 1), 256, 8, IFA, 2),  # on four: two passes beat gathering's three
        ((3, 1), 256, 8, IFA, 3),  # so do three, as gathering has the scores besides
        ((6, 2), 256, 8, IFA, 3),
        ((4, 1), 256, 8, "decomposed", 1),
        ((4, 1), 144, 8, "decomposed", 1),
        (GEMMA_2B, 256, 8, "decomposed", 1),
        (GEMMA_2B, 128, 8, IFA, 1),  # grouped heads up to 128
        (GEMMA_7B, 256, 257, "decomposed", 1),
        ((2, 1), 256, 129, "decomposed", 1),
    ],
)
def test_decode_attention_on_the_300i_duo(
    heads: tuple[int, int], head_dim: int, batch: int, op: str, fold: int
) -> None:
    choice = choose_attention(ATLAS_300I_DUO, "decode", 64, *heads, head_dim, batch)
    assert (choice.op, choice.fold) == (op, fold)
    assert choice.paged == (op == IFA)
    assert choice.cache_passes == (fold if op == IFA else 3)


@pytest.mark.parametrize(
    ("heads", "batch", "reason"),
    [
        ((2, 1), 8, "2 query heads become rows, each reads the cache (2 passes; gathering takes 3 and the scores)"),
        (
            (2, 1),
            129,
            "blocks are gathered (3 passes and the scores; a batch of 129 with 2 query heads as rows exceeds",
        ),
        ((4, 1), 129, "(3 passes and the scores; 4 query heads as rows would each read the cache, 4 passes)"),
        (GEMMA_7B, 257, "a batch of 257 exceeds the 256 rows of IncreFlashAttention: blocks are gathered (3 passes"),
    ],
)
def test_the_reason_on_the_300i_duo_is_the_one_that_holds(heads: tuple[int, int], batch: int, reason: str) -> None:
    assert reason in choose_attention(ATLAS_300I_DUO, "decode", 64, *heads, 256, batch).reason


@pytest.mark.parametrize(("phase", "passes"), [("prefill", (1, 5, 17)), ("extend", (3, 7, 19))])
def test_key_heads_repeated_for_prefill_on_the_duo_are_counted(phase: str, passes: tuple[int, ...]) -> None:
    """One, two and eight query heads per key head."""
    found = (choose_attention(ATLAS_300I_DUO, phase, 64, heads, 1, 256, 1) for heads in (1, 2, 8))  # type: ignore[arg-type]
    assert tuple(choice.cache_passes for choice in found) == passes


def test_prefill_on_the_duo_gathers_only_after_earlier_context() -> None:
    prefill, extend = (
        choose_attention(ATLAS_300I_DUO, phase, 64, 16, 16, 256, batch=1) for phase in ("prefill", "extend")
    )
    assert (prefill.op, prefill.cache_passes, prefill.paged) == (PFA, 1, False)
    assert (extend.op, extend.cache_passes, extend.paged) == (PFA, 3, False)


def test_rotary_by_chip() -> None:
    assert fused_rotary(ATLAS_800I_A2, 256)
    assert not fused_rotary(ATLAS_800I_A2, 48)
    assert not fused_rotary(ATLAS_300I_DUO, 256)


@pytest.mark.parametrize(
    ("soc", "quantization", "changes", "message"),
    [
        (ATLAS_300I_DUO, Quantization(None, kv8=True), {}, "FusedInferAttentionScore and DynamicQuant"),
        (ATLAS_800I_A2, Quantization(None, kv8=True), {"head_dim": 80}, "head_dim is 80; .* multiple of 32"),
        (ATLAS_800I_A2, Quantization(None, kv8=True), {"block_size": 48}, "multiples of 32 .*int8"),
        (ATLAS_300I_DUO, Quantization("w8a8_dynamic"), {}, "w8a8_dynamic needs DynamicQuant"),
    ],
)
def test_what_a_chip_cannot_quantize_is_refused(
    soc: Chip, quantization: Quantization, changes: dict[str, int], message: str
) -> None:
    model = {"head_dim": 64, "block_size": 64}
    check_quantization(ATLAS_800I_A2, quantization, **model)
    with pytest.raises(UserError, match=message):
        check_quantization(soc, quantization, **model | changes)


def test_products_join_all_reduces_within_one_a2_server() -> None:
    for world_size in (1, 2, 4, 8):
        check_matmul_all_reduce(ATLAS_800I_A2, world_size)
    with pytest.raises(UserError, match="world_size is 16; MatmulAllReduce joins 1, 2, 4, 8 devices"):
        check_matmul_all_reduce(ATLAS_800I_A2, 16)
    with pytest.raises(UserError, match="the Atlas 300I DUO has no MatmulAllReduce"):
        check_matmul_all_reduce(ATLAS_300I_DUO, 2)


@pytest.mark.parametrize(
    ("phase", "how"), [("prefill", "sparse_mode 4"), ("decode", "the window's blocks and a mask, as the op")]
)
def test_a_window_on_the_a2_keeps_the_fused_kernel(phase: str, how: str) -> None:
    choice = choose_attention(ATLAS_800I_A2, phase, 128, 4, 1, 256, batch=4, window=512)  # type: ignore[arg-type]
    assert (choice.op, choice.paged) == (FIA, True)
    assert f"window 512: {how}" in choice.reason


@pytest.mark.parametrize("chip", [ATLAS_800I_A2, ATLAS_300I_DUO])
@pytest.mark.parametrize(("phase", "passes"), [("prefill", 1), ("extend", 3), ("decode", 3)])
def test_no_fused_kernel_is_chosen_for_a_softcap(chip: Chip, phase: str, passes: int) -> None:
    choice = choose_attention(chip, phase, 128, 8, 4, 128, batch=4, softcap=50.0)  # type: ignore[arg-type]
    assert (choice.op, choice.paged, choice.cache_passes) == ("decomposed", False, passes)
    assert "no attention op has a soft-cap (50)" in choice.reason
