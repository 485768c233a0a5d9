"""Choose the attention op of a step on a chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graph_gemma.graph_model.ascend.ops.attention import check_block_size
from graph_gemma.graph_model.bucket import Phase
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.errors import UserError

_GATHER_PASSES = 3  # read, written gathered, read again


@dataclass(frozen=True)
class AttentionChoice:
    """How a step's attention runs on a chip."""

    op: str  # the GE op type, or "decomposed"
    paged: bool  # the op reads the cache through a block table; otherwise, except in prefill, blocks are gathered first
    fold: int  # this many query heads that share a key head become rows of the batch; 1: heads stay heads
    cache_passes: int  # how often the row's keys and values are moved
    reason: str  # for the dump


def choose_attention(
    chip: Chip,
    phase: Phase,
    block_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    batch: int,
    int8_cache: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> AttentionChoice:
    """The attention op of a step; heads are those of one rank. Raises UserError where there is none."""
    check_block_size(chip, block_size, int8_cache=int8_cache)
    if softcap is not None:
        passes = 1 if phase == "prefill" else _GATHER_PASSES
        which = "fresh keys and values" if phase == "prefill" else "gathered keys and values"
        reason = f"no attention op has a soft-cap ({softcap:g}): written out over {which}"
        return AttentionChoice("decomposed", False, 1, passes, reason)
    if chip.has("FusedInferAttentionScore"):
        choice = _choose_fused_infer(chip, phase, block_size, int8_cache)
        how = "sparse_mode 4"
        if phase == "decode":
            how = "the window's blocks and a mask, as the op ignores sparse_mode with one query token"
    else:
        choice = _choose_without_fused_infer(chip, phase, heads, kv_heads, head_dim, batch)
        how = "the window's blocks and a mask" if choice.paged else "a mask" if phase == "prefill" else "its keys only"
    return choice if window is None else replace(choice, reason=f"{choice.reason}; window {window}: {how}")


def _choose_without_fused_infer(
    chip: Chip, phase: Phase, heads: int, kv_heads: int, head_dim: int, batch: int
) -> AttentionChoice:
    group = heads // kv_heads
    if phase != "decode":
        gathered = phase == "extend"
        expanded = 1 + 2 * group if group > 1 else 1  # read, written once for each query head, read again
        return AttentionChoice(
            "PromptFlashAttention",
            paged=False,
            fold=1,
            cache_passes=2 * gathered + expanded,
            reason=("the cached blocks are gathered first: " if gathered else "over the fresh keys and values: ")
            + "PromptFlashAttention has no paging; key heads are expanded, the mask is made in the graph",
        )
    limits = chip.limits("IncreFlashAttention")
    most_rows = limits.max_rows or batch * group
    too_many = f"exceeds the {most_rows} rows of IncreFlashAttention"
    if group == 1 or limits.max_grouped_head_dim is None or head_dim <= limits.max_grouped_head_dim:
        if batch <= most_rows:
            return AttentionChoice("IncreFlashAttention", True, 1, 1, f"paged; {group} query heads per key head")
        reason = f"a batch of {batch} {too_many}: blocks are gathered ({_GATHER_PASSES} passes)"
        return AttentionChoice("decomposed", False, 1, _GATHER_PASSES, reason)
    limit = f"grouped heads need head_dim <= {limits.max_grouped_head_dim}, it is {head_dim}"
    as_rows = f"{group} query heads as rows would each read the cache, {group} passes"
    # The scores, which only a decomposition moves, are less than a pass: 8 * group / head_dim of one.
    if group <= _GATHER_PASSES and batch * group <= most_rows:
        reason = f"{limit}: {group} query heads become rows, each reads the cache ({group} passes; "
        reason += f"gathering takes {_GATHER_PASSES} and the scores)"
        return AttentionChoice("IncreFlashAttention", True, group, group, reason)
    if group <= _GATHER_PASSES:
        as_rows = f"a batch of {batch} with {group} query heads as rows {too_many}"
    reason = f"{limit}: blocks are gathered ({_GATHER_PASSES} passes and the scores; {as_rows})"
    return AttentionChoice("decomposed", False, 1, _GATHER_PASSES, reason)


def _choose_fused_infer(chip: Chip, phase: Phase, block_size: int, int8_cache: bool) -> AttentionChoice:
    op = "FusedInferAttentionScore"
    if phase == "decode":
        return AttentionChoice(op, True, 1, 1, f"paged, block_size {block_size}{', int8 cache' if int8_cache else ''}")
    if not int8_cache and _pages_several_tokens(chip, block_size):
        return AttentionChoice(op, True, 1, 1, f"paged, block_size {block_size}")
    if phase == "prefill":
        return AttentionChoice(op, False, 1, 1, "unpaged, over the chunk's fresh keys and values")
    if int8_cache:
        reason = "an int8 cache serves one query token only: the cached blocks are gathered and dequantized first"
    else:
        reason = f"block_size {block_size} is not a multiple of 128: the cached blocks are gathered first"
    return AttentionChoice(op, False, 1, 3, reason)


def _pages_several_tokens(chip: Chip, block_size: int) -> bool:
    try:
        check_block_size(chip, block_size, query_tokens=2)
    except UserError:
        return False
    return True
