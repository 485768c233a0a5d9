"""Scheduler: which sequences run in the next step, and with how many tokens."""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass
from operator import attrgetter

from graph_gemma.graph_model.bucket import BucketTable, round_up
from graph_gemma.runners.engine.block_manager import BlockManager, HeldBlocks
from graph_gemma.runners.engine.input_batch import InputBatch
from graph_gemma.runners.engine.sequence import Sequence
from graph_gemma.runners.engine.statistics import Statistics

_STEP_COST = 64  # what a step costs beyond its tokens (reading the weights), in tokens; steers batching of prompts
_arrival = attrgetter("request_id")


@dataclass(slots=True)
class Plan:
    """One step: sequences, and how many of each one's tokens it computes."""

    decode: bool
    sequences: list[Sequence]
    counts: list[int]

    def places(self, scored: bool) -> list[int]:
        """For each sequence: how many places of its chunk are scored, or else the one in which a token is chosen."""
        if not scored:
            return [1] * len(self.sequences)
        found = []
        for sequence, count in zip(self.sequences, self.counts, strict=True):
            assert sequence.scoring is not None
            here = sequence.scoring.within(sequence.num_computed, count)
            found.append(here.stop - here.start)
        return found


class Scheduler:
    """Continuous batching with chunked prefill.

    Order of arrival is the priority everywhere. While there are both prompts to compute and sequences to decode, the
    two kinds of step alternate, so neither waits for more than one step of the other. Prompts are computed
    somewhat ahead of the decode batch (at most one prefill batch more than it holds), so that a place in it is taken
    at once. When blocks run out, the youngest running sequence gives up its blocks and waits; it is computed again
    later, or found in the cache. The oldest running sequence is never preempted, so every request comes to its end.
    """

    def __init__(self, buckets: BucketTable, blocks: BlockManager, rows: InputBatch, statistics: Statistics) -> None:
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self._buckets = buckets
        self._blocks = blocks
        self._rows = rows
        self._statistics = statistics
        self._decode_limit = buckets.batch_sizes[-1]
        self._prefill_limit = buckets.prefill_batch_sizes[-1]
        self._max_chunks = [0] + [_max_chunk(buckets, rows) for rows in range(1, self._prefill_limit + 1)]
        self._decoded_last = True

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Plan | None:
        """The next step, with the blocks that it needs allocated; None if nothing waits or runs."""
        plan = (self._plan_prefill() if self._decoded_last else None) or self._plan_decode()
        plan = plan or self._plan_prefill()
        self._decoded_last = plan is not None and plan.decode
        return plan

    def computed(self, sequence: Sequence) -> None:
        """Some tokens of a running sequence were computed: full blocks become findable, others leave the window."""
        held, num_computed, size = sequence.held, sequence.num_computed, self._blocks.block_size
        if num_computed >= (held.num_registered + 1) * size:
            self._blocks.register(held, sequence.token_ids, num_computed)
        first = held.window_first
        if self._blocks.trim(held, num_computed):
            self._rows.drop_window_blocks(sequence.row, first, held.window_first)

    def prompt_computed(self, sequence: Sequence) -> None:
        """All tokens of a prefilling sequence are computed: it decodes from now on."""
        self.prefilling.remove(sequence)
        insort(self.decoding, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """Take the sequence out, wherever it is, and free what it holds."""
        if sequence.row < 0:
            self.waiting.remove(sequence)
        else:
            self._stop_running(sequence)

    def _plan_decode(self) -> Plan | None:
        batch: list[Sequence] = []
        size = self._blocks.block_size
        for sequence in self.decoding[:]:
            if len(batch) == self._decode_limit:
                break
            if sequence.row < 0:  # preempted for a sequence before it
                continue
            length = len(sequence.token_ids)
            if length > len(sequence.held.blocks) * size and not self._grow(sequence, length, length):
                continue
            batch.append(sequence)
        return Plan(True, batch, [1] * len(batch)) if batch else None

    def _grow(self, sequence: Sequence, end: int, window_end: int) -> bool:
        """Give the sequence blocks for its tokens up to `end`, and `window_end`, in the two pools.

        Where none is free, the youngest sequences are preempted; False if the sequence itself was.
        """
        while not self._blocks.can_grow(sequence.held, end, window_end):
            victim = max((kind[-1] for kind in (self.prefilling, self.decoding) if kind), key=_arrival)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._rows.add_blocks(sequence.row, self._blocks.grow(sequence.held, end, window_end))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_running(sequence)
        sequence.num_preemptions += 1
        self._statistics.preemptions += 1
        self.waiting.appendleft(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        holder = self.decoding if sequence in self.decoding else self.prefilling
        holder.remove(sequence)
        self._blocks.release(sequence.held)
        self._rows.release(sequence)
        sequence.held = HeldBlocks()

    def _plan_prefill(self) -> Plan | None:
        self._admit()
        if not self.prefilling:
            return None
        # A step returns tokens, scores or distributions: only requests of one kind share a step.
        kind = _kind(self.prefilling[0])
        candidates = [s for s in self.prefilling if _kind(s) == kind][: self._prefill_limit]
        counts = self._chunk([len(s.token_ids) - s.num_computed for s in candidates])
        plan = Plan(False, [], [])
        for sequence, count in zip(candidates, counts, strict=False):
            if sequence.row < 0:  # preempted for a sequence before it
                continue
            if self._grow(sequence, len(sequence.token_ids), sequence.num_computed + count):
                plan.sequences.append(sequence)
                plan.counts.append(count)
        return plan if plan.sequences else None

    def _admit(self) -> None:
        """Let waiting sequences run while rows and blocks last.

        A new sequence leaves one free block per running sequence, besides those that it takes, so that it does not
        cause preemptions at once. One whose beginning another sequence is computing now waits for those blocks.
        """
        while self.waiting and self._rows.num_free and len(self.prefilling) < self._prefill_limit:
            if self._blocks.num_free <= self.num_running:
                return
            sequence = self.waiting[0]
            token_ids = sequence.token_ids
            match = self._blocks.match(sequence.shareable)
            num_shared = len(match.blocks)
            if self._is_being_computed(sequence, num_shared):
                return
            end, num_computed = len(token_ids), num_shared * self._blocks.block_size
            # Of the pool of layers with a window a sequence needs a chunk's blocks at a time.
            window_end = num_computed + min(end - num_computed, self._max_chunks[1])
            if not self._blocks.can_take(match, end, window_end, spare=self.num_running):
                return
            self.waiting.popleft()
            self._rows.claim(sequence)
            self._rows.add_blocks(sequence.row, self._blocks.take(match))
            sequence.held, sequence.num_computed = match, num_computed
            self._rows.add_blocks(sequence.row, self._blocks.grow(match, end, window_end))
            if not sequence.num_preemptions:
                sequence.num_cached_tokens = sequence.num_computed
                self._statistics.prompt_tokens += len(token_ids)
                self._statistics.cached_prompt_tokens += sequence.num_computed
            insort(self.prefilling, sequence, key=_arrival)

    def _is_being_computed(self, sequence: Sequence, num_shared: int) -> bool:
        """Whether a prefilling sequence will compute the next block that this one could share."""
        end = (num_shared + 1) * self._blocks.block_size
        if end >= len(sequence.shareable):
            return False
        beginning = sequence.token_ids[:end]
        return any(
            other.num_computed < end <= len(other.token_ids) and other.token_ids[:end] == beginning
            for other in self.prefilling
        )

    def _chunk(self, remaining: list[int]) -> list[int]:
        """How many tokens each of the first rows gets; remaining: what every candidate still needs.

        The first row gets all it can. As many rows join it, in order, as saves most against a step for each.
        """
        best = [min(remaining[0], self._max_chunks[1])]
        most_saved = 0
        for rows in range(2, len(remaining) + 1):
            if self._max_chunks[rows] < best[0]:
                break
            counts = [min(tokens, self._max_chunks[rows]) for tokens in remaining[:rows]]
            saved = sum(self._cost(1, count) for count in counts) - self._cost(rows, max(counts))
            if saved > most_saved:
                best, most_saved = counts, saved
        return best

    def _cost(self, rows: int, tokens: int) -> int:
        """What a padded prefill step costs, in tokens."""
        rows = round_up(rows, self._buckets.prefill_batch_sizes)
        return rows * round_up(tokens, self._buckets.chunk_lengths) + _STEP_COST


def _kind(sequence: Sequence) -> str | None:
    return None if sequence.scoring is None else sequence.scoring.kind


def _max_chunk(buckets: BucketTable, rows: int) -> int:
    """The longest chunk that a prefill step of so many rows may have, 0: none."""
    return max((length for length in buckets.chunk_lengths if buckets.fits(rows, length)), default=0)
