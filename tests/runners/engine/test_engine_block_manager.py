"""Blocks are counted right, and a cached block is only found by the tokens it holds."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from runners.engine.block_manager import ROOT, BlockManager

BLOCK_SIZE, NUM_BLOCKS, NUM_SCRATCH = 2, 11, 2


class Blocks(RuleBasedStateMachine):
    """Sequences come and go; `written` remembers what each block really holds: all tokens up to its end."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, NUM_SCRATCH, BLOCK_SIZE)
        self.written: dict[int, tuple[int, ...]] = {}
        self.held: list[list[int]] = []

    @rule(target=sequences, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), register=st.booleans())
    def admit(self, tokens: list[int], register: bool) -> list[int]:
        manager, token_ids = self.manager, array("q", tokens)
        shared, content = manager.match(token_ids)
        assert len(shared) * BLOCK_SIZE < len(tokens)
        for index, block in enumerate(shared):
            assert self.written[block] == tuple(tokens[: (index + 1) * BLOCK_SIZE])
        needed = -(-len(tokens) // BLOCK_SIZE) - len(shared)
        if needed > manager.num_free - sum(map(manager.is_free, shared)):
            return []
        manager.share(shared)
        fresh = manager.allocate(needed)
        in_use = {block for held in self.held for block in held} | set(shared)
        assert not in_use & set(fresh)
        assert min(fresh) >= NUM_SCRATCH
        blocks = shared + fresh
        for index in range(len(shared), len(blocks)):
            self.written[blocks[index]] = tuple(tokens[: (index + 1) * BLOCK_SIZE])
        if register:
            for index in range(len(shared), len(tokens) // BLOCK_SIZE):
                part = token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
                content = manager.register(blocks[index], content, part)
        self.held.append(blocks)
        return blocks

    @rule(blocks=consumes(sequences))
    def release(self, blocks: list[int]) -> None:
        if blocks:
            self.held.remove(blocks)
            self.manager.release(blocks)

    @invariant()
    def counts_equal_holders(self) -> None:
        holders = [block for held in self.held for block in held]
        assert self.manager.ref_counts == [holders.count(block) for block in range(NUM_BLOCKS)]
        assert self.manager.num_used == len(set(holders))
        assert self.manager.num_free == NUM_BLOCKS - NUM_SCRATCH - len(set(holders))


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def fill(manager: BlockManager, tokens: list[int]) -> list[int]:
    """Blocks for a sequence that nothing of is cached, computed and registered."""
    blocks = manager.allocate(-(-len(tokens) // manager.block_size))
    content = ROOT
    for index in range(len(tokens) // manager.block_size):
        part = array("q", tokens[index * manager.block_size : (index + 1) * manager.block_size])
        content = manager.register(blocks[index], content, part)
    return blocks


def test_a_block_is_not_found_after_another_beginning() -> None:
    manager = BlockManager(8, 0, 2)
    manager.release(fill(manager, [1, 2, 3, 4]))
    assert len(manager.match(array("q", [1, 2, 3, 4, 5]))[0]) == 2
    assert len(manager.match(array("q", [1, 9, 3, 4, 5]))[0]) == 0
    assert len(manager.match(array("q", [3, 4, 5]))[0]) == 0


def test_a_wholly_cached_prompts_last_block_is_computed_again() -> None:
    manager = BlockManager(8, 0, 2)
    blocks = fill(manager, [1, 2, 3, 4])
    assert manager.match(array("q", [1, 2, 3, 4]))[0] == blocks[:1]
    assert manager.match(array("q", [1, 2, 3, 4, 5]))[0] == blocks


def test_freed_blocks_are_evicted_oldest_and_ends_first() -> None:
    manager = BlockManager(4, 0, 2)
    first, second = fill(manager, [1, 1, 2, 2]), fill(manager, [3, 3, 4, 4])
    manager.release(first)
    manager.release(second)
    assert manager.num_free == 4
    assert manager.allocate(1) == [first[1]]
    assert manager.match(array("q", [1, 1, 2, 2, 0]))[0] == [first[0]]
    assert manager.match(array("q", [3, 3, 4, 4, 0]))[0] == second
    assert manager.allocate(2) == [first[0], second[1]]
    assert manager.match(array("q", [3, 3, 4, 4, 0]))[0] == [second[0]]


def test_blocks_without_content_are_used_before_cached_ones() -> None:
    manager = BlockManager(4, 0, 2)
    cached = fill(manager, [1, 1, 2, 2])
    manager.release(cached)
    assert not set(manager.allocate(2)) & set(cached)


def test_a_block_computed_twice_is_found_once() -> None:
    manager = BlockManager(4, 0, 2)
    first, second = fill(manager, [1, 1]), fill(manager, [1, 1])
    assert manager.match(array("q", [1, 1, 5]))[0] == first
    manager.release(first)
    manager.release(second)
    assert manager.num_free == 4
    assert manager.match(array("q", [1, 1, 5]))[0] == first


def test_releasing_twice_is_an_error() -> None:
    manager = BlockManager(4, 0, 2)
    blocks = manager.allocate(2)
    manager.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        manager.release(blocks)
