"""Preparing a step: choose its bucket and fill its input arrays."""

from __future__ import annotations

import numpy as np

from graph_gemma.graph_model.bucket import Bucket, BucketTable, Phase, Selection, StepInputs
from graph_gemma.runners.engine.input_batch import InputBatch
from graph_gemma.runners.engine.scheduler import Plan


class StepPreparation:
    """Writes plans into a model's input arrays, by the padding rules of StepInputs."""

    def __init__(self, buckets: BucketTable, block_size: int, rows: InputBatch) -> None:
        self._buckets = buckets
        self._block_size = block_size
        self._state = rows
        self._scratch_slots = np.arange(buckets.num_scratch_slots)

    def choose(self, plan: Plan) -> tuple[Bucket, np.ndarray, np.ndarray]:
        """The bucket for a plan; the row in InputBatch of each of its sequences; which of them get a token.

        Rows whose prompt goes on after this chunk get no token, so their sampling settings do not count.
        """
        state = self._state
        rows = np.array([sequence.row for sequence in plan.sequences])
        phase: Phase = "decode"
        chunk = 1
        if plan.decode:
            ends = state.length[rows]
            chosen = rows
            ending = np.ones(len(rows), np.bool_)
        else:
            starts = np.array([sequence.num_computed for sequence in plan.sequences])
            ends = starts + plan.counts
            ending = ends == state.length[rows]
            chosen = rows[ending]
            phase = "extend" if starts.any() else "prefill"
            chunk = max(plan.counts)
        selection: Selection = "sample" if (state.temperature[chosen] > 0).any() else "greedy"
        # A chunk in which nothing is scored needs no more than the beginning of a prompt does.
        scoring = plan.sequences[0].scoring
        scored = 0 if scoring is None else max(plan.places(scored=True))
        if scoring is not None and scored:
            selection = scoring.kind
        bucket = self._buckets.choose(
            phase,
            rows=len(rows),
            tokens=chunk,
            blocks=-(-int(ends.max()) // self._block_size),
            selection=selection,
            logprobs=int(state.logprobs[chosen].max(initial=-1)),
            scored=scored,
        )
        return bucket, rows, ending

    def fill(self, inputs: StepInputs, plan: Plan, rows: np.ndarray, ending: np.ndarray) -> None:
        """Write the plan into the arrays of the bucket that was chosen for it."""
        if plan.decode:
            self._fill_decode(inputs, rows)
        else:
            self._fill_chunks(inputs, plan)
        if inputs.temperature is not None:
            self._fill_sampling(inputs, rows, ending)
        if inputs.score_positions is not None:
            _fill_scoring(inputs, plan)

    def _fill_decode(self, inputs: StepInputs, rows: np.ndarray) -> None:
        state, size, count = self._state, self._block_size, len(rows)
        lengths = state.length[rows]
        positions = lengths - 1
        places, offsets = positions // size, positions % size
        inputs.input_ids[:count, 0] = state.last_token[rows]
        inputs.input_ids[count:] = 0
        inputs.positions[:count, 0] = positions
        inputs.positions[count:] = 0
        assert inputs.context_lens is not None
        inputs.context_lens[:count] = lengths
        inputs.context_lens[count:] = 1
        for slots, block_table, state_table in self._pools(inputs):
            assert block_table is not None
            slots[:count, 0] = state_table[rows, places] * size + offsets
            slots[count:, 0] = self._scratch_slots[: len(slots) - count]
            block_table[:count] = state_table[rows, : block_table.shape[1]]
            block_table[count:] = 0

    def _fill_chunks(self, inputs: StepInputs, plan: Plan) -> None:
        size, pools = self._block_size, self._pools(inputs)
        assert inputs.query_lens is not None
        inputs.input_ids.fill(0)
        inputs.positions.fill(0)
        inputs.query_lens.fill(1)
        if inputs.context_lens is not None:
            inputs.context_lens.fill(1)
        for slots, block_table, _ in pools:
            slots[:] = self._scratch_slots[: slots.size].reshape(slots.shape)
            if block_table is not None:
                block_table.fill(0)
        for index, (sequence, count) in enumerate(zip(plan.sequences, plan.counts, strict=True)):
            start = sequence.num_computed
            positions = np.arange(start, start + count)
            inputs.input_ids[index, :count] = np.frombuffer(sequence.token_ids, np.int64)[start : start + count]
            inputs.positions[index, :count] = positions
            inputs.query_lens[index] = count
            if inputs.context_lens is not None:
                inputs.context_lens[index] = start + count
            places, offsets, num_blocks = positions // size, positions % size, -(-(start + count) // size)
            for slots, block_table, state_table in pools:
                slots[index, :count] = state_table[sequence.row, places] * size + offsets
                if block_table is not None:
                    block_table[index, :num_blocks] = state_table[sequence.row, :num_blocks]

    def _pools(self, inputs: StepInputs) -> list[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
        """Of each pool: the step's slots and block table, and the block table of all rows."""
        state = self._state
        pools = [(inputs.slot_mapping, inputs.block_table, state.block_table)]
        if inputs.window_slot_mapping is not None and state.window_block_table is not None:
            pools.append((inputs.window_slot_mapping, inputs.window_block_table, state.window_block_table))
        return pools

    def _fill_sampling(self, inputs: StepInputs, rows: np.ndarray, ending: np.ndarray) -> None:
        """Rows that get no token, and padding, are greedy."""
        state, count = self._state, len(rows)
        assert inputs.temperature is not None
        assert inputs.top_k is not None
        assert inputs.top_p is not None
        assert inputs.uniform is not None
        inputs.temperature.fill(0)
        inputs.top_k.fill(0)
        inputs.top_p.fill(1)
        inputs.uniform.fill(0)
        inputs.temperature[:count] = state.temperature[rows] * ending
        inputs.top_k[:count] = state.top_k[rows]
        inputs.top_p[:count] = state.top_p[rows]
        inputs.uniform[:count] = state.uniforms(rows)


def _fill_scoring(inputs: StepInputs, plan: Plan) -> None:
    assert inputs.score_positions is not None
    inputs.score_positions.fill(0)
    if inputs.target_ids is not None:
        inputs.target_ids.fill(0)
    for row, (sequence, count) in enumerate(zip(plan.sequences, plan.counts, strict=True)):
        assert sequence.scoring is not None
        sequence.scoring.fill(inputs, row, sequence.num_computed, count)
