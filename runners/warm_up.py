"""Which buckets a run can come to, so that everything is compiled before the first token."""

from __future__ import annotations

from collections.abc import Sequence

from graph_model.bucket import Bucket, Selection, round_up
from runners.engine.model import StepModel


def reachable_buckets(
    model: StepModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, sample: bool
) -> list[Bucket]:
    """Every bucket that answering `prompts` (token ids) on a fresh engine can need, wherever their answers end.

    Chunks that continue a sequence (`extend`) are needed if a prompt may be cut, if prompts may share blocks, or if
    sequences may be preempted and computed again.
    """
    table, block_size = model.buckets, model.block_size
    selection: Selection = "sample" if sample else "greedy"
    lengths = [len(prompt) for prompt in prompts]
    final_lengths = [min(length + max_new_tokens, model.max_seq_len) for length in lengths]
    preempts = _may_preempt(model, final_lengths)
    computed = final_lengths if preempts else lengths
    widths = _sizes_up_to(table.table_widths, -(-max(final_lengths) // block_size))
    caps = {rows: _largest_chunk(model, rows) for rows in _sizes_up_to(table.prefill_batch_sizes, len(prompts))}
    caps = {rows: cap for rows, cap in caps.items() if cap}
    cut = max(computed) > min(caps.values())
    shapes: list[tuple[int, int]] = []
    extends = cut or preempts or _may_share(prompts, block_size)
    for rows, cap in caps.items():
        if extends:
            chunks = set(_sizes_up_to(table.chunk_lengths, min(max(computed), cap)))
        else:
            chunks = {round_up(min(length, cap), table.chunk_lengths) for length in computed}
        shapes += [(rows, chunk) for chunk in sorted(chunks)]
    buckets = [Bucket("prefill", rows, chunk, 0, selection) for rows, chunk in shapes]
    if extends:
        # A step in which no prompt ends draws no token.
        selections: set[Selection] = {selection, "greedy"}
        for kind in sorted(selections):
            buckets += [Bucket("prefill", rows, chunk, 0, kind) for rows, chunk in shapes if kind != selection]
            buckets += [Bucket("extend", rows, chunk, width, kind) for rows, chunk in shapes for width in widths]
    batches = _sizes_up_to(table.batch_sizes, len(prompts))
    return buckets + [Bucket("decode", batch, 1, width, selection) for batch in batches for width in widths]


def _may_preempt(model: StepModel, final_lengths: list[int]) -> bool:
    """Whether the longest sequences that can run at once need more blocks than there are."""
    most = model.buckets.batch_sizes[-1] + model.buckets.prefill_batch_sizes[-1]
    blocks = sorted((-(-length // model.block_size) for length in final_lengths), reverse=True)
    return sum(blocks[:most]) > model.num_blocks - model.num_scratch_blocks


def _may_share(prompts: Sequence[Sequence[int]], block_size: int) -> bool:
    """Whether a prompt's first block may be found in the cache: another prompt begins with it, or with its beginning.

    A shorter prompt counts, because its answer may go on as the longer prompt does.
    """
    beginnings: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if len(prompt) > block_size:
            first_block = tuple(prompt[:block_size])
            if first_block in beginnings:
                return True
            beginnings.update(first_block[:length] for length in range(1, block_size + 1))
    return any(tuple(prompt) in beginnings for prompt in prompts if len(prompt) <= block_size)


def _largest_chunk(model: StepModel, rows: int) -> int:
    return max((chunk for chunk in model.buckets.chunk_lengths if model.buckets.fits(rows, chunk)), default=0)


def _sizes_up_to(sizes: tuple[int, ...], value: int) -> list[int]:
    """The sizes that values from 1 to `value` are rounded up to."""
    largest = round_up(min(value, sizes[-1]), sizes)
    return [size for size in sizes if size <= largest]
