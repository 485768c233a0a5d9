"""InputBatch: the running sequences as arrays, a row each, from which decode steps are filled."""

from __future__ import annotations

import numpy as np

from graph_gemma.runners.engine.block_manager import Growth
from graph_gemma.runners.engine.sequence import Sequence
from graph_gemma.runners.engine.uniforms import CHUNK, uniform_chunk


class InputBatch:
    """One row per running sequence, so that a decode step is prepared by indexing.

    R rows, W blocks per row. A row's unused block table entries are 0; so are those of blocks that fell out of the
    window. windowed: whether the model has layers with a window, whose blocks are in a pool of their own.
    """

    def __init__(self, num_rows: int, max_blocks_per_seq: int, windowed: bool = False) -> None:
        self.length = np.zeros(num_rows, np.int64)  # tokens of the sequence, the newest included
        self.last_token = np.zeros(num_rows, np.int64)
        self.block_table = np.zeros((num_rows, max_blocks_per_seq), np.int64)  # [R, W]
        # Of layers with a window, by the same places.
        self.window_block_table = np.zeros_like(self.block_table) if windowed else None
        self.temperature = np.zeros(num_rows, np.float32)
        self.top_k = np.zeros(num_rows, np.int64)
        self.top_p = np.ones(num_rows, np.float32)
        self.logprobs = np.full(num_rows, -1, np.int64)
        self._seeds = [0] * num_rows
        self._uniforms = np.zeros((num_rows, CHUNK), np.float32)
        self._uniform_chunk = np.full(num_rows, -1, np.int64)  # which chunk of numbers a row holds
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def claim(self, sequence: Sequence) -> None:
        """Give the sequence a row and write its settings and tokens there; its blocks come by `add_blocks`."""
        row = sequence.row = self._free.pop()
        sampling = sequence.sampling
        self.rewind(sequence)
        self.temperature[row] = 0 if sampling.greedy else sampling.temperature
        self.top_k[row] = 0 if sampling.greedy else min(sampling.top_k, np.iinfo(np.int64).max)
        self.top_p[row] = 1 if sampling.greedy else sampling.top_p
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self._seeds[row] = sequence.seed
        self._uniforms[row] = 0
        self._uniform_chunk[row] = -1

    def release(self, sequence: Sequence) -> None:
        self.block_table[sequence.row] = 0
        if self.window_block_table is not None:
            self.window_block_table[sequence.row] = 0
        self._free.append(sequence.row)
        sequence.row = -1

    def add_blocks(self, row: int, growth: Growth) -> None:
        """Write the blocks that the row's sequence was given."""
        first, blocks = growth.first, growth.blocks
        self.block_table[row, first : first + len(blocks)] = blocks
        if self.window_block_table is not None:
            first, blocks = growth.window_first, growth.window_blocks
            self.window_block_table[row, first : first + len(blocks)] = blocks

    def drop_window_blocks(self, row: int, first: int, stop: int) -> None:
        """Clear the places of blocks that fell out of the window."""
        assert self.window_block_table is not None
        self.window_block_table[row, first:stop] = 0

    def append(self, rows: np.ndarray, token_ids: np.ndarray) -> None:
        """Add one token to each of these rows."""
        self.length[rows] += 1
        self.last_token[rows] = token_ids

    def rewind(self, sequence: Sequence) -> None:
        """Set the row to the sequence's own tokens, without later ones that `append` added."""
        self.length[sequence.row] = len(sequence.token_ids)
        self.last_token[sequence.row] = sequence.token_ids[-1]

    def uniforms(self, rows: np.ndarray) -> np.ndarray:
        """The random number of each row's next token; greedy rows have any number."""
        positions = self.length[rows]
        chunks = positions // CHUNK
        stale = rows[(self._uniform_chunk[rows] != chunks) & (self.temperature[rows] > 0)]
        for row in stale.tolist():
            chunk = int(self.length[row]) // CHUNK
            self._uniforms[row] = uniform_chunk(self._seeds[row], chunk)
            self._uniform_chunk[row] = chunk
        return self._uniforms[rows, positions % CHUNK]
