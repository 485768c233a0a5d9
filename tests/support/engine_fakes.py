"""A StepModel for tests: its tokens are a hash of what it reads back through the block table."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from graph_gemma.graph_model.bucket import Bucket, BucketTable, StepInputs, StepOutput, make_inputs, powers_of_two
from graph_gemma.runners.engine.block_manager import BlockManager
from graph_gemma.runners.engine.sampling_params import SamplingParams

VOCAB_SIZE = 251


def small_buckets(batch: int = 4, prefill_batch: int = 2, chunk: int = 8, width: int = 16) -> BucketTable:
    return BucketTable(
        batch_sizes=powers_of_two(1, batch),
        prefill_batch_sizes=powers_of_two(1, prefill_batch),
        chunk_lengths=powers_of_two(2, chunk),
        table_widths=powers_of_two(1, width),
        max_step_tokens=chunk * max(1, prefill_batch // 2),
    )


def hashed_token(context: Sequence[int], settings: tuple[float, int, float, float] | None) -> int:
    """The next token; settings: temperature, top_k, top_p and uniform of a sampled row."""
    digest = hashlib.blake2b(np.asarray(context, np.int64).tobytes(), digest_size=8)
    if settings is not None:
        digest.update(struct.pack("<fqff", *settings))
    return int.from_bytes(digest.digest(), "little") % VOCAB_SIZE


def expected_tokens(
    prompt: Sequence[int], sampling: SamplingParams, max_seq_len: int, eos: Sequence[int] = ()
) -> list[int]:
    """What a request gets when it is alone, without any engine."""
    tokens = list(prompt)
    end = min(len(prompt) + sampling.max_new_tokens, max_seq_len)
    uniforms = None
    if sampling.temperature > 0:
        words = np.random.Philox(key=sampling.seed).random_raw(end)
        uniforms = (words // 2**40).astype(np.float64) / 2**24
    while len(tokens) < end:
        settings = None
        if uniforms is not None:
            settings = (sampling.temperature, sampling.top_k, sampling.top_p, float(uniforms[len(tokens)]))
        tokens.append(hashed_token(tokens, settings))
        if tokens[-1] in eos and not sampling.ignore_eos:
            break
    return tokens[len(prompt) :]


class FakeModel:
    """Keeps token ids and positions where a model keeps keys and values, and checks every declared rule of a step.

    choose: replaces the hash as the choice of the next token. blocks: an engine's block manager, to check that no
    shared block is written and no freed block is read. before_run: called with the number of steps so far.
    window: keys that a query sees in layers with a window, for which a second pool of blocks keeps the same.
    """

    def __init__(
        self,
        buckets: BucketTable | None = None,
        block_size: int = 4,
        usable_blocks: int = 64,
        max_seq_len: int = 64,
        choose: Callable[[list[int]], int] | None = None,
        window: int | None = None,
        usable_window_blocks: int = 64,
    ) -> None:
        self.buckets = buckets or small_buckets()
        self.block_size = block_size
        self.num_scratch_blocks = -(-self.buckets.num_scratch_slots // block_size)
        self.num_blocks = self.num_scratch_blocks + usable_blocks
        self.max_seq_len = max_seq_len
        self.window = window
        self.num_window_blocks = 0 if window is None else self.num_scratch_blocks + usable_window_blocks
        self.choose = choose
        self.blocks: BlockManager | None = None
        self.before_run: Callable[[int], None] | None = None
        self.steps: list[tuple[Bucket, int, int]] = []  # bucket, real rows, real tokens
        # Token id and position at each slot of each pool.
        self._cached, self._cached_in_window = (
            np.full((2, blocks * block_size), -1, np.int64) for blocks in (self.num_blocks, self.num_window_blocks)
        )
        self._inputs: dict[Bucket, StepInputs] = {}

    def inputs(self, bucket: Bucket) -> StepInputs:
        if bucket not in self._inputs:
            self._inputs[bucket] = make_inputs(bucket, self.window is not None)
        return self._inputs[bucket]

    def run(self, bucket: Bucket) -> StepOutput:
        if self.before_run is not None:
            self.before_run(len(self.steps))
        inputs = self._inputs[bucket]
        rows = self._check(bucket, inputs)
        self._cached[:, inputs.slot_mapping] = inputs.input_ids, inputs.positions
        if inputs.window_slot_mapping is not None:
            self._cached_in_window[:, inputs.window_slot_mapping] = inputs.input_ids, inputs.positions
        token_ids = np.full(bucket.batch, -7, np.int64)  # a padded row's token must not be used
        for row in range(rows):
            context = self._context(inputs, row)
            settings = None
            if inputs.temperature is not None and inputs.temperature[row] > 0:
                arrays = (inputs.temperature, inputs.top_k, inputs.top_p, inputs.uniform)
                settings = tuple(array[row].item() for array in arrays)
            token_ids[row] = self.choose(context.tolist()) if self.choose else hashed_token(context, settings)
        tokens = rows if inputs.query_lens is None else int(inputs.query_lens[:rows].sum())
        self.steps.append((bucket, rows, tokens))
        if bucket.logprobs < 0:
            return StepOutput(token_ids)
        ranks = np.arange(bucket.logprobs)
        return StepOutput(
            token_ids,
            logprob=-(token_ids / 16).astype(np.float32),
            top_ids=token_ids[:, None] + ranks,
            top_logprobs=np.broadcast_to(-ranks.astype(np.float32), (bucket.batch, bucket.logprobs)),
        )

    def _context(self, inputs: StepInputs, row: int) -> np.ndarray:
        if inputs.block_table is None or inputs.context_lens is None:
            return inputs.input_ids[row, : inputs.query_lens[row]]
        positions = np.arange(inputs.context_lens[row])
        table = inputs.block_table[row]
        slots = table[positions // self.block_size] * self.block_size + positions % self.block_size
        ids, found = self._cached[:, slots]
        assert (found == positions).all(), "a block holds other positions than expected"
        if self.window is not None:
            self._check_window(inputs, row, ids)
        return ids

    def _check_window(self, inputs: StepInputs, row: int, ids: np.ndarray) -> None:
        """What the row's tokens see in layers with a window is what the other layers have, in blocks that are held."""
        size, table = self.block_size, inputs.window_block_table[row]
        seen = np.arange(max(0, int(inputs.positions[row, 0]) - self.window + 1), len(ids))
        slots = table[seen // size] * size + seen % size
        found_ids, found = self._cached_in_window[:, slots]
        assert (found == seen).all(), "a window's block holds other positions than expected"
        assert (found_ids == ids[seen]).all(), "a window's block holds other tokens than expected"
        assert not table[: seen[0] // size].any(), "blocks before the window are given back"
        if self.blocks is not None:
            assert all(self.blocks.windowed.ref_counts[block] for block in table[seen // size]), "a freed block is read"

    def _check(self, bucket: Bucket, inputs: StepInputs) -> int:
        """Check the rules of StepInputs; returns the number of real rows."""
        size = self.block_size
        for name, array in make_inputs(bucket, self.window is not None).arrays().items():
            assert inputs.arrays()[name].shape == array.shape
            assert inputs.arrays()[name].dtype == array.dtype
        pools = [(inputs.slot_mapping, self.num_blocks, self.blocks and self.blocks.full)]
        if inputs.window_slot_mapping is not None:
            pools.append((inputs.window_slot_mapping, self.num_window_blocks, self.blocks and self.blocks.windowed))
        for slots, num_blocks, _ in pools:
            assert len(np.unique(slots)) == slots.size, "slots are not unique"
            assert slots.min() >= 0
            assert slots.max() < num_blocks * size
        slots = inputs.slot_mapping
        scratch = slots < self.num_scratch_blocks * size
        real_rows = ~scratch[:, 0]
        rows = int(real_rows.sum())
        assert rows > 0
        assert real_rows[:rows].all(), "padded rows come last"
        if bucket.phase != "decode":
            assert slots.size <= self.buckets.max_step_tokens
        lengths = np.ones(bucket.batch, np.int64) if inputs.query_lens is None else inputs.query_lens
        real = (np.arange(bucket.chunk) < lengths[:, None]) & real_rows[:, None]
        for own, _, _ in pools:
            assert ((own < self.num_scratch_blocks * size) == ~real).all(), "padding writes to scratch, tokens do not"
        assert (inputs.input_ids[~real] == 0).all()
        assert (inputs.positions[~real] == 0).all()
        for array in (inputs.query_lens, inputs.context_lens):
            assert array is None or ((array[rows:] == 1).all() and array.min() >= 1)
        for row in range(rows):
            positions = inputs.positions[row, : lengths[row]]
            assert (np.diff(positions) == 1).all()
            if bucket.phase == "prefill":
                assert positions[0] == 0
            else:
                self._check_blocks(inputs, row, positions)
        if inputs.block_table is not None:
            assert (inputs.block_table[rows:] == 0).all()
            assert inputs.window_block_table is None or (inputs.window_block_table[rows:] == 0).all()
        if inputs.temperature is not None:
            assert (inputs.temperature[rows:] == 0).all()
            assert (inputs.uniform >= 0).all()
            assert (inputs.uniform < 1).all()
        for own, _, pool in pools:
            for block in np.unique(own[real] // size).tolist() if pool else ():
                assert pool.ref_counts[block] == 1, "a written block has one owner"
                assert not pool.is_registered(block), "a findable block is never written"
        return rows

    def _check_blocks(self, inputs: StepInputs, row: int, positions: np.ndarray) -> None:
        size, table = self.block_size, inputs.block_table[row]
        assert inputs.context_lens[row] == positions[-1] + 1
        expected = table[positions // size] * size + positions % size
        assert (inputs.slot_mapping[row, : len(positions)] == expected).all()
        used = -(-int(inputs.context_lens[row]) // size)
        assert (table[:used] >= self.num_scratch_blocks).all()
        assert len(np.unique(table[:used])) == used
        assert (table[used:] == 0).all()
        if inputs.window_slot_mapping is not None:
            table = inputs.window_block_table[row]
            expected = table[positions // size] * size + positions % size
            assert (inputs.window_slot_mapping[row, : len(positions)] == expected).all()
            assert (table[used:] == 0).all()


def scripted(prompt_length: int, answer: Sequence[int]) -> Callable[[list[int]], int]:
    """A `choose` that gives every prompt of that length the same answer."""
    return lambda context: answer[len(context) - prompt_length]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer; <eos> is id 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran to the barn. END of story\n"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def assert_nothing_held(engine: object) -> None:
    """All blocks are free, once each, and the scheduler is empty."""
    blocks, scheduler = engine.blocks, engine.scheduler  # type: ignore[attr-defined]
    assert not engine.has_unfinished()  # type: ignore[attr-defined]
    assert not scheduler.waiting
    assert scheduler.num_running == 0
    for pool in filter(None, (blocks.full, blocks.windowed)):
        assert set(pool.ref_counts) == {0}
        assert pool.num_used == 0
        taken = pool.allocate(pool.num_free)
        assert len(set(taken)) == len(taken) == pool.num_usable
        pool.release(taken)
