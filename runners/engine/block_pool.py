"""Block pool of a paged KV cache: reference counts, blocks found by content, eviction."""

from __future__ import annotations

from collections.abc import Callable


class BlockPool:
    """Counts references to blocks and remembers what free ones still hold.

    A block is free (no reference) or held by one or more sequences. A full block may be registered by the number of
    its content. It keeps its content when it becomes free, and is found by it until it is evicted, least recently
    freed first.

    on_evict: called with the number of a content when the block that held it is taken for another.
    """

    def __init__(self, num_blocks: int, num_scratch_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_usable = num_blocks - num_scratch_blocks
        self.ref_counts = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, num_scratch_blocks - 1, -1))  # free, of no known content
        self._cached: dict[int, None] = {}  # free, of known content; least recently freed first
        self._contents: dict[int, int] = {}  # block -> the number of its content
        self._blocks: dict[int, int] = {}  # number of a content -> its block
        self._on_evict = on_evict

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_usable - self.num_free

    def num_free_beside(self, shared: list[int]) -> int:
        """Blocks that `allocate` can give once these are shared."""
        return self.num_free - sum(not self.ref_counts[block] for block in shared)

    def is_registered(self, block: int) -> bool:
        return block in self._contents

    def holds(self, content: int) -> bool:
        return content in self._blocks

    def find_all(self, contents: list[int]) -> list[int]:
        """The blocks that hold these contents, all of which the pool holds."""
        return [self._blocks[content] for content in contents]

    def share(self, blocks: list[int]) -> None:
        """Add a reference to each of these blocks, which were found by content."""
        for block in blocks:
            if self.ref_counts[block] == 0:
                del self._cached[block]
            self.ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of no content with one reference each. At most `num_free` may be asked for."""
        return [self._allocate() for _ in range(count)]

    def register(self, block: int, content: int) -> None:
        """Make a full, computed block findable. If another block holds the content, that one stays the findable one."""
        if content not in self._blocks:
            self._blocks[content] = block
            self._contents[block] = content

    def forget(self, content: int) -> None:
        """No block is found by this content any more."""
        block = self._blocks.pop(content, None)
        if block is not None:
            del self._contents[block]
            if block in self._cached:
                del self._cached[block]
                self._blank.append(block)

    def release(self, blocks: list[int]) -> None:
        """Give back one reference to each of these blocks of a sequence.

        The last block becomes free first and so is evicted first: a beginning outlives its continuations.
        """
        for block in reversed(blocks):
            if self.ref_counts[block] < 1:
                raise AssertionError(f"block {block} is released more often than it was taken")
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                if block in self._contents:
                    self._cached[block] = None
                else:
                    self._blank.append(block)

    def _allocate(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            content = self._contents.pop(block)
            del self._blocks[content]
            if self._on_evict is not None:
                self._on_evict(content)
        self.ref_counts[block] = 1
        return block
