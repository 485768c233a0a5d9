"""Block manager of the paged KV cache: reference counts, prefix caching, eviction."""

from __future__ import annotations

from array import array

Key = tuple[int, bytes]  # (content of the block before, the block's token ids)
ROOT = 0  # the content before the first block


class BlockManager:
    """Counts references to the blocks of a KV cache and finds blocks that already hold a prefix.

    A block is free (no reference) or held by one or more sequences. Full blocks are registered by content: the token
    ids of the block and of all blocks before it. A registered block keeps its content when it becomes free, and
    serves later sequences with the same beginning until it is evicted, least recently freed first.

    Shared blocks are never written, so nothing is ever copied on write: only full blocks are registered, and a match
    leaves out at least the last token of a sequence. Where all of a prompt is cached and ends at a block's
    end, its last block is computed again in a block of its own.

    A content is named by a number that is given once and never used again. A block's key is the number of the content
    before it and its own token ids, compared in full by the dictionary, so equal hashes cannot mix contents up.
    """

    def __init__(self, num_blocks: int, num_scratch_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_usable = num_blocks - num_scratch_blocks
        self.ref_counts = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, num_scratch_blocks - 1, -1))  # free, of no known content
        self._cached: dict[int, None] = {}  # free, of known content; least recently freed first
        self._keys: dict[int, Key] = {}  # block -> its key
        self._contents: dict[Key, tuple[int, int]] = {}  # key -> (block, number of the content)
        self._next_content = ROOT + 1

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_usable - self.num_free

    def is_free(self, block: int) -> bool:
        return self.ref_counts[block] == 0

    def is_registered(self, block: int) -> bool:
        return block in self._keys

    def match(self, token_ids: array[int]) -> tuple[list[int], int]:
        """The blocks that hold the longest cached beginning of a sequence, and the number of their content.

        At least the last token is left out: its step has to run to choose the next token.
        """
        size = self.block_size
        blocks: list[int] = []
        content = ROOT
        for start in range(0, (len(token_ids) - 1) // size * size, size):
            found = self._contents.get((content, token_ids[start : start + size].tobytes()))
            if found is None:
                break
            block, content = found
            blocks.append(block)
        return blocks, content

    def share(self, blocks: list[int]) -> None:
        """Add a reference to each of these matched blocks."""
        for block in blocks:
            if self.ref_counts[block] == 0:
                del self._cached[block]
            self.ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of no content with one reference each. At most `num_free` may be asked for."""
        return [self._allocate() for _ in range(count)]

    def register(self, block: int, before: int, token_ids: array[int]) -> int:
        """Make a full, computed block findable; returns the number of its content.

        `before` is the number of the content of the blocks before it. If another block already holds the same
        content, that one stays the findable one.
        """
        key = (before, token_ids.tobytes())
        known = self._contents.get(key)
        if known is not None:
            return known[1]
        content = self._next_content
        self._next_content += 1
        self._contents[key] = (block, content)
        self._keys[block] = key
        return content

    def release(self, blocks: list[int]) -> None:
        """Give back one reference to each block of a sequence.

        The last block becomes free first and so is evicted first: a beginning outlives its continuations.
        """
        for block in reversed(blocks):
            if self.ref_counts[block] < 1:
                raise AssertionError(f"block {block} is released more often than it was taken")
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                if block in self._keys:
                    self._cached[block] = None
                else:
                    self._blank.append(block)

    def _allocate(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            del self._contents[self._keys.pop(block)]
        self.ref_counts[block] = 1
        return block
