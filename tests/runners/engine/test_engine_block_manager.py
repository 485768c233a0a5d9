"""Blocks are counted right in both pools, and a cached block is only found by the tokens it holds."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from support.engine_fakes import FakeModel, small_buckets

from graph_gemma.runners.engine import Engine, SamplingParams
from graph_gemma.runners.engine.block_manager import BlockManager, HeldBlocks
from graph_gemma.runners.engine.block_pool import BlockPool

BLOCK_SIZE, NUM_BLOCKS, NUM_WINDOW_BLOCKS, NUM_SCRATCH = 2, 11, 9, 2


class Running:
    """A sequence whose first `computed` tokens are in the blocks."""

    def __init__(self, tokens: list[int], held: HeldBlocks) -> None:
        self.tokens, self.held = tokens, held
        self.computed = len(held.blocks) * BLOCK_SIZE


class Blocks(RuleBasedStateMachine):
    """Sequences come, are computed, and go; `written` remembers what blocks really hold: all tokens up to their end."""

    sequences = Bundle("sequences")

    @initialize(window=st.sampled_from([None, 1, 2, 3, 4, 5]))
    def start(self, window: int | None) -> None:
        self.window = window
        self.manager = BlockManager(NUM_BLOCKS, NUM_SCRATCH, BLOCK_SIZE, window, NUM_WINDOW_BLOCKS)
        self.written: list[dict[int, tuple[int, ...]]] = [{}, {}]  # of each pool
        self.running: list[Running] = []

    @rule(target=sequences, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, tokens: list[int]) -> Running | None:
        match = self.manager.match(array("q", tokens))
        assert len(match.blocks) * BLOCK_SIZE < len(tokens)
        first = match.window_first
        for written, blocks, place in zip(self.written, (match.blocks, match.window_blocks), (0, first), strict=True):
            for index, block in enumerate(blocks, place):
                assert written[block] == tuple(tokens[: (index + 1) * BLOCK_SIZE])
        if self.window is not None:
            end = len(match.blocks) * BLOCK_SIZE
            assert first == max(0, end - self.window + 1) // BLOCK_SIZE
            assert len(match.window_blocks) == len(match.blocks) - first
        else:
            assert not match.window_blocks
        if not self.manager.can_take(match, len(tokens), len(match.blocks) * BLOCK_SIZE + 1, spare=0):
            return None
        growth = self.manager.take(match)
        assert (growth.first, growth.blocks, growth.window_blocks) == (0, match.blocks, match.window_blocks)
        sequence = Running(tokens, match)
        self.running.append(sequence)
        return sequence

    @rule(sequence=sequences, tokens=st.integers(1, 4), register=st.booleans())
    def compute(self, sequence: Running | None, tokens: int, register: bool) -> None:
        if sequence is None or sequence not in self.running:
            return
        held, end = sequence.held, min(len(sequence.tokens), sequence.computed + tokens)
        if not self.manager.can_grow(held, len(sequence.tokens), end):
            return
        growth = self.manager.grow(held, len(sequence.tokens), end)
        pools = (growth.blocks, growth.first), (growth.window_blocks, growth.window_first)
        for written, (blocks, first) in zip(self.written, pools, strict=True):
            for index, block in enumerate(blocks, first):
                assert block >= NUM_SCRATCH
                written[block] = tuple(sequence.tokens[: (index + 1) * BLOCK_SIZE])
        for position in range(sequence.computed, end):
            self.check_visible(sequence, position)
        sequence.computed = end
        if register:
            self.manager.register(held, array("q", sequence.tokens), end)
            self.manager.trim(held, end)

    def check_visible(self, sequence: Running, position: int) -> None:
        """Every key that the token at this position sees is in a block of the sequence's."""
        held, oldest = sequence.held, 0 if self.window is None else max(0, position - self.window + 1)
        for seen in range(position + 1):
            place = seen // BLOCK_SIZE
            written = tuple(sequence.tokens[: (place + 1) * BLOCK_SIZE])
            assert self.written[0][held.blocks[place]] == written
            if self.window is not None and seen >= oldest:
                assert self.written[1][held.window_blocks[place - held.window_first]] == written

    @rule(sequence=consumes(sequences))
    def release(self, sequence: Running | None) -> None:
        if sequence is not None and sequence in self.running:
            self.running.remove(sequence)
            self.manager.release(sequence.held)

    @invariant()
    def counts_equal_holders(self) -> None:
        if not hasattr(self, "manager"):
            return
        full = [block for sequence in self.running for block in sequence.held.blocks]
        check_counts(self.manager.full, full, NUM_BLOCKS)
        if self.manager.windowed is not None:
            in_window = [block for sequence in self.running for block in sequence.held.window_blocks]
            check_counts(self.manager.windowed, in_window, NUM_WINDOW_BLOCKS)


def check_counts(pool: BlockPool, holders: list[int], num_blocks: int) -> None:
    assert pool.ref_counts == [holders.count(block) for block in range(num_blocks)]
    assert pool.num_used == len(set(holders))
    assert pool.num_free == num_blocks - NUM_SCRATCH - len(set(holders))


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def fill(manager: BlockManager, tokens: list[int]) -> HeldBlocks:
    """The blocks of a sequence that nothing of is cached, computed and registered at once."""
    held = HeldBlocks()
    manager.grow(held, len(tokens), len(tokens))
    manager.register(held, array("q", tokens), len(tokens))
    return held


def found(manager: BlockManager, tokens: list[int]) -> list[int]:
    return manager.match(array("q", tokens)).blocks


def test_a_block_is_not_found_after_another_beginning() -> None:
    manager = BlockManager(8, 0, 2)
    manager.release(fill(manager, [1, 2, 3, 4]))
    assert len(found(manager, [1, 2, 3, 4, 5])) == 2
    assert len(found(manager, [1, 9, 3, 4, 5])) == 0
    assert len(found(manager, [3, 4, 5])) == 0


def test_a_wholly_cached_prompts_last_block_is_computed_again() -> None:
    manager = BlockManager(8, 0, 2)
    blocks = fill(manager, [1, 2, 3, 4]).blocks
    assert found(manager, [1, 2, 3, 4]) == blocks[:1]
    assert found(manager, [1, 2, 3, 4, 5]) == blocks


def test_freed_blocks_are_evicted_oldest_and_ends_first() -> None:
    manager = BlockManager(4, 0, 2)
    first, second = fill(manager, [1, 1, 2, 2]), fill(manager, [3, 3, 4, 4])
    manager.release(first)
    manager.release(second)
    assert manager.num_free == 4
    assert manager.full.allocate(1) == [first.blocks[1]]
    assert found(manager, [1, 1, 2, 2, 0]) == [first.blocks[0]]
    assert found(manager, [3, 3, 4, 4, 0]) == second.blocks
    assert manager.full.allocate(2) == [first.blocks[0], second.blocks[1]]
    assert found(manager, [3, 3, 4, 4, 0]) == [second.blocks[0]]


def test_blocks_without_content_are_used_before_cached_ones() -> None:
    manager = BlockManager(4, 0, 2)
    cached = fill(manager, [1, 1, 2, 2])
    manager.release(cached)
    assert not set(manager.full.allocate(2)) & set(cached.blocks)


def test_a_block_computed_twice_is_found_once() -> None:
    manager = BlockManager(4, 0, 2)
    first, second = fill(manager, [1, 1]), fill(manager, [1, 1])
    assert found(manager, [1, 1, 5]) == first.blocks
    manager.release(first)
    manager.release(second)
    assert manager.num_free == 4
    assert found(manager, [1, 1, 5]) == first.blocks


def test_releasing_twice_is_an_error() -> None:
    pool = BlockPool(4, 0)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)


@pytest.mark.parametrize(("window", "kept"), [(4, 2), (5, 2), (6, 3), (1, 0), (2, 1)])
def test_blocks_outside_the_window_are_given_back(window: int, kept: int) -> None:
    """After 12 tokens in blocks of 2, the next one sees the `window` - 1 before it."""
    manager = BlockManager(12, 0, 2, window, 12)
    held = fill(manager, list(range(12)))
    assert manager.trim(held, 12) == 6 - kept
    assert manager.num_used == 6
    assert manager.num_window_used == kept == len(held.window_blocks)
    assert manager.trim(held, 12) == 0


def test_a_prefix_is_found_as_far_as_its_window_is_there() -> None:
    manager = BlockManager(8, 0, 2, window=4, num_window_blocks=6)
    first = fill(manager, [1, 1, 2, 2, 3, 3, 4, 4])
    own = list(first.window_blocks)
    manager.trim(first, 8)
    manager.release(first)
    match = manager.match(array("q", [1, 1, 2, 2, 3, 3, 4, 4, 5]))
    assert (match.blocks, match.window_first, match.window_blocks) == (first.blocks, 2, own[2:])
    assert found(manager, [1, 1, 2, 2, 3, 3, 9]) == first.blocks[:3]
    # Two blocks were never used; then come those that left the window, the later one first.
    manager.windowed.allocate(3)
    match = manager.match(array("q", [1, 1, 2, 2, 3, 3, 4, 4, 5]))
    assert (match.blocks, match.window_first, match.window_blocks) == (first.blocks, 2, own[2:])
    assert found(manager, [1, 1, 2, 2, 3, 3, 9]) == first.blocks[:1], "the window before the third block's end has gone"
    manager.windowed.allocate(1)
    assert found(manager, [1, 1, 2, 2, 3, 3, 9]) == []
    assert found(manager, [1, 1, 2, 2, 3, 3, 4, 4, 5]) == first.blocks
    manager.windowed.allocate(1)
    assert found(manager, [1, 1, 2, 2, 3, 3, 4, 4, 5]) == []


def test_a_window_block_is_forgotten_with_its_content() -> None:
    manager = BlockManager(4, 0, 2, window=4, num_window_blocks=4)
    manager.release(fill(manager, [1, 1, 2, 2]))
    manager.release(fill(manager, [3, 3, 4, 4]))
    manager.full.allocate(4)
    assert manager.windowed.num_free == 4
    assert not any(manager.windowed.is_registered(block) for block in range(4))


FAULTS = {
    "a block freed one step early": ("trim", lambda trim: lambda self, held, n: trim(self, held, n + 1)),
    "a prefix without its window": ("_with_window", lambda _: lambda self, contents: (len(contents), len(contents))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_planted_in_the_window_pool_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake model reads what a real one reads; tests with mixtures of requests rest on it."""
    name, change = FAULTS[fault]
    monkeypatch.setattr(BlockManager, name, change(getattr(BlockManager, name)))
    model = FakeModel(small_buckets(), usable_blocks=40, max_seq_len=40, window=5, usable_window_blocks=8)
    engine = Engine(model)
    model.blocks = engine.blocks

    def serve() -> None:
        for _ in range(2):
            engine.add_request([7] * 13, SamplingParams(max_new_tokens=12))
            while engine.has_unfinished():
                engine.step()

    with pytest.raises((AssertionError, IndexError)):
        serve()
    monkeypatch.undo()
    model = FakeModel(small_buckets(), usable_blocks=40, max_seq_len=40, window=5, usable_window_blocks=8)
    engine = Engine(model)
    model.blocks = engine.blocks
    serve()
