"""Warm-up: which buckets a run can need, so that all are compiled before the first token."""

from __future__ import annotations

from collections.abc import Sequence

from graph_gemma.graph_model.bucket import Bucket, Selection, round_up
from graph_gemma.runners.engine.model import StepModel, window_blocks
from graph_gemma.runners.engine.sampling_params import SamplingParams

Kind = tuple[Selection, int]  # how a step chooses tokens, and how many log-probabilities it returns (see Bucket)
_NO_TOKEN: Kind = ("greedy", -1)  # of a step in which no prompt ends


def reachable_buckets(
    model: StepModel,
    prompts: Sequence[Sequence[int]] | None,
    sampling: SamplingParams | Sequence[SamplingParams],
    *,
    once: bool = False,
) -> list[Bucket]:
    """Every bucket that answering `prompts` (token ids) can need, wherever their answers end.

    prompts: None: any that the model can serve, as many as run at once. sampling: of all prompts, or one per prompt;
    without prompts, all that may occur. once: the engine has answered nothing yet and answers these prompts one time;
    then chunks that continue a sequence (`extend`) are needed only if a prompt may be cut, if prompts may share blocks,
    or if sequences may be preempted and computed again. Otherwise a prompt's beginning may be found in the cache.
    """
    table, block_size = model.buckets, model.block_size
    settings = [sampling] if isinstance(sampling, SamplingParams) else list(sampling)
    kinds = _kinds(settings)
    if prompts is None:
        prompts = [[0] * (model.max_seq_len - 1)] * (table.batch_sizes[-1] + table.prefill_batch_sizes[-1])
        settings, once = settings[:1], False
    if len(settings) == 1:
        settings *= len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    final_lengths = [
        min(length + setting.max_new_tokens, model.max_seq_len)
        for length, setting in zip(lengths, settings, strict=True)
    ]
    preempts = _may_preempt(model, final_lengths)
    computed = final_lengths if preempts else lengths
    widths = _sizes_up_to(table.table_widths, -(-max(final_lengths) // block_size))
    caps = {rows: _largest_chunk(model, rows) for rows in _sizes_up_to(table.prefill_batch_sizes, len(prompts))}
    caps = {rows: cap for rows, cap in caps.items() if cap}
    cut = max(computed) > min(caps.values())
    shapes: list[tuple[int, int]] = []
    extends = not once or cut or preempts or _may_share(prompts, block_size)
    for rows, cap in caps.items():
        if extends:
            chunks = set(_sizes_up_to(table.chunk_lengths, min(max(computed), cap)))
        else:
            chunks = {round_up(min(length, cap), table.chunk_lengths) for length in computed}
        shapes += [(rows, chunk) for chunk in sorted(chunks)]
    prefill_kinds = [*kinds, _NO_TOKEN] if extends and _NO_TOKEN not in kinds else kinds
    buckets = [Bucket("prefill", rows, chunk, 0, *kind) for kind in prefill_kinds for rows, chunk in shapes]
    if extends:
        buckets += [
            Bucket("extend", rows, chunk, width, *kind)
            for kind in prefill_kinds
            for rows, chunk in shapes
            for width in widths
        ]
    batches = _sizes_up_to(table.batch_sizes, len(prompts))
    return buckets + [
        Bucket("decode", batch, 1, width, *kind) for kind in kinds for batch in batches for width in widths
    ]


def _kinds(settings: Sequence[SamplingParams]) -> list[Kind]:
    """What steps of any mixture of these requests choose and return.

    A step samples if one of its rows does, and returns the largest number of log-probabilities that a row asks for.
    """
    numbers = sorted({-1 if s.logprobs is None else s.logprobs for s in settings})
    kinds: list[Kind] = []
    selections: tuple[Selection, ...] = ("greedy", "sample")
    for selection in selections:
        own = {-1 if s.logprobs is None else s.logprobs for s in settings if s.greedy == (selection == "greedy")}
        # A row that samples may share its step with any other; a greedy step has greedy rows only.
        reached = own if selection == "greedy" else [number for number in numbers if own and number >= min(own)]
        kinds += [(selection, number) for number in sorted(reached)]
    return kinds


def _may_preempt(model: StepModel, final_lengths: list[int]) -> bool:
    """Whether the longest sequences that can run at once need more blocks than there are."""
    most = model.buckets.batch_sizes[-1] + model.buckets.prefill_batch_sizes[-1]
    longest = sorted(final_lengths, reverse=True)[:most]
    if sum(-(-length // model.block_size) for length in longest) > model.num_blocks - model.num_scratch_blocks:
        return True
    if model.window is None:
        return False
    prefilling, chunk = model.buckets.prefill_batch_sizes[-1], model.buckets.chunk_lengths[-1]
    computed = [chunk] * prefilling + [1] * len(longest)
    held = sum(
        window_blocks(model.window, tokens, model.block_size, length)
        for length, tokens in zip(longest, computed, strict=False)
    )
    return held > model.num_window_blocks - model.num_scratch_blocks


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
