"""Block manager of the paged KV cache: the blocks of sequences in both pools, and prefix caching."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from graph_gemma.runners.engine.block_pool import BlockPool

ROOT = 0  # the content before the first block


@dataclass
class HeldBlocks:
    """The blocks of one sequence, each for `block_size` tokens in their order."""

    blocks: list[int] = field(default_factory=list)  # in the pool of layers that see all tokens
    window_blocks: list[int] = field(default_factory=list)  # in the pool of layers with a window
    window_first: int = 0  # how many blocks came before those: they fell out of the window
    num_registered: int = 0  # blocks that are known by content
    content: int = ROOT  # number of the content of those blocks


@dataclass(frozen=True)
class Growth:
    """Blocks that a sequence was given: the place of the first one, and the blocks, in each pool."""

    first: int
    blocks: list[int]
    window_first: int
    window_blocks: list[int]


class BlockManager:
    """Gives blocks to sequences, takes them back, and finds blocks that already hold a prefix.

    Layers that see all tokens and layers with a window have a pool each. In the first a sequence holds a block for
    all its tokens. In the second it holds those that a token still to be computed can see;
    `trim` gives the others back.

    Full blocks are registered by content: the token ids of the block and of all blocks before it. A content is named by
    a number that is given once and never used again. Its key is the number of the content before it and its own token
    ids, compared in full by the dictionary, so equal hashes cannot mix contents up. It is known for as long as
    the first pool has a block of it.

    A prefix is found as far as the first pool holds all of it and the second the window before its end. Shared blocks
    are never written, so nothing is ever copied on write: only full blocks are registered, and a match leaves out at
    least the last token of a sequence. Where all of a prompt is cached and ends at a block's end, its last block is
    computed again in a block of its own.

    num_blocks, num_window_blocks: of the pools, scratch blocks included. window: keys that a query sees in layers with
    a window; None: there is one pool.
    """

    def __init__(
        self,
        num_blocks: int,
        num_scratch_blocks: int,
        block_size: int,
        window: int | None = None,
        num_window_blocks: int = 0,
    ) -> None:
        self.block_size = block_size
        self.window = window
        self.full = BlockPool(num_blocks, num_scratch_blocks, self._forget)
        self.windowed = None if window is None else BlockPool(num_window_blocks, num_scratch_blocks)
        self._keys: dict[int, tuple[int, bytes]] = {}  # content -> its key
        self._contents: dict[tuple[int, bytes], int] = {}  # key -> number of the content
        self._next_content = ROOT + 1

    @property
    def num_usable(self) -> int:
        """Blocks of layers that see all tokens, held or free."""
        return self.full.num_usable

    @property
    def num_free(self) -> int:
        """Blocks of layers that see all tokens that a sequence can be given."""
        return self.full.num_free

    @property
    def num_used(self) -> int:
        """Blocks of layers that see all tokens that some sequence holds."""
        return self.full.num_used

    @property
    def num_window_used(self) -> int:
        """Blocks of layers with a window that some sequence holds."""
        return 0 if self.windowed is None else self.windowed.num_used

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def match(self, token_ids: array[int]) -> HeldBlocks:
        """The blocks that hold the longest cached beginning of a sequence, not yet its own: `take` makes them so.

        At least the last token is left out: its step has to run to choose the next token.
        """
        size = self.block_size
        contents: list[int] = []
        content = ROOT
        for start in range(0, (len(token_ids) - 1) // size * size, size):
            found = self._contents.get((content, token_ids[start : start + size].tobytes()))
            if found is None:
                break
            content = found
            contents.append(content)
        count, window_first = self._with_window(contents)
        held = HeldBlocks(num_registered=count, content=contents[count - 1] if count else ROOT)
        held.blocks = self.full.find_all(contents[:count])
        if self.windowed is not None:
            held.window_first = window_first
            held.window_blocks = self.windowed.find_all(contents[window_first:count])
        return held

    def can_take(self, match: HeldBlocks, end: int, window_end: int, spare: int) -> bool:
        """Whether a new sequence can have the blocks of `match` and those that it needs besides.

        They are for its tokens up to `end` in the first pool, of which `spare` blocks are left, and up to `window_end`
        in the second.
        """
        needed, window_needed = self._missing(match, end, window_end)
        if self.full.num_free_beside(match.blocks) - needed < spare:
            return False
        return self.windowed is None or self.windowed.num_free_beside(match.window_blocks) >= window_needed

    def take(self, match: HeldBlocks) -> Growth:
        """Make the blocks of a match those of a sequence."""
        self.full.share(match.blocks)
        if self.windowed is not None:
            self.windowed.share(match.window_blocks)
        return Growth(0, match.blocks, match.window_first, match.window_blocks)

    def can_grow(self, held: HeldBlocks, end: int, window_end: int) -> bool:
        """Whether there are free blocks for the sequence's tokens up to `end`, and `window_end`."""
        needed, window_needed = self._missing(held, end, window_end)
        return needed <= self.full.num_free and (self.windowed is None or window_needed <= self.windowed.num_free)

    def grow(self, held: HeldBlocks, end: int, window_end: int) -> Growth:
        """Give the sequence the blocks that it lacks for its tokens up to `end`, and `window_end`."""
        needed, window_needed = self._missing(held, end, window_end)
        new = self.full.allocate(needed)
        new_window = [] if self.windowed is None else self.windowed.allocate(window_needed)
        growth = Growth(len(held.blocks), new, held.window_first + len(held.window_blocks), new_window)
        held.blocks += new
        held.window_blocks += new_window
        return growth

    def register(self, held: HeldBlocks, token_ids: array[int], num_computed: int) -> None:
        """Make the blocks of the sequence's first `num_computed` tokens findable that became full since the last time.

        If another block already holds the same content, that one stays the findable one.
        """
        size = self.block_size
        for index in range(held.num_registered, num_computed // size):
            key = (held.content, token_ids[index * size : (index + 1) * size].tobytes())
            content = self._contents.get(key)
            if content is None:
                content = self._next_content
                self._next_content += 1
                self._contents[key] = content
                self._keys[content] = key
            self.full.register(held.blocks[index], content)
            if self.windowed is not None:
                self.windowed.register(held.window_blocks[index - held.window_first], content)
            held.content = content
        held.num_registered = num_computed // size

    def trim(self, held: HeldBlocks, num_computed: int) -> int:
        """Give back the blocks that no token from `num_computed` on sees; returns how many.

        They must have been registered before, if they are to be found.
        """
        if self.windowed is None:
            return 0
        count = max(0, self._first_seen(num_computed) - held.window_first)
        if count:
            self.windowed.release(held.window_blocks[:count])
            del held.window_blocks[:count]
            held.window_first += count
        return count

    def release(self, held: HeldBlocks) -> None:
        """Give back all blocks of a sequence."""
        self.full.release(held.blocks)
        if self.windowed is not None:
            self.windowed.release(held.window_blocks)

    def _missing(self, held: HeldBlocks, end: int, window_end: int) -> tuple[int, int]:
        """Blocks that the sequence lacks for its tokens up to `end`, and `window_end`, in the two pools."""
        held_in_window = held.window_first + len(held.window_blocks)
        return max(0, self.blocks_of(end) - len(held.blocks)), max(0, self.blocks_of(window_end) - held_in_window)

    def _first_seen(self, position: int) -> int:
        """The place of the first block that the token at `position` sees through the window."""
        assert self.window is not None
        return max(0, position - self.window + 1) // self.block_size

    def _with_window(self, contents: list[int]) -> tuple[int, int]:
        """How many of the blocks can be used, and the first one in the window before the end of those."""
        if self.windowed is None:
            return len(contents), 0
        best = best_first = present = 0
        for count, content in enumerate(contents, 1):
            present = present + 1 if self.windowed.holds(content) else 0
            first = self._first_seen(count * self.block_size)
            if count - first <= present:
                best, best_first = count, first
        return best, best_first

    def _forget(self, content: int) -> None:
        """The first pool has no block of a content any more."""
        del self._contents[self._keys.pop(content)]
        if self.windowed is not None:
            self.windowed.forget(content)
