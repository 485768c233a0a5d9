"""Engine: the step loop of continuous batching (schedule, prepare, run, take the tokens)."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from graph_gemma.graph_model.bucket import Bucket, StepOutput
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.admission import check_prompt, check_room
from graph_gemma.runners.engine.block_manager import BlockManager
from graph_gemma.runners.engine.detokenizer import Detokenizer, make_decode, special_tokens
from graph_gemma.runners.engine.input_batch import InputBatch
from graph_gemma.runners.engine.model import StepModel, check_model
from graph_gemma.runners.engine.result import FinishReason, RequestResult, TokenEvent, TokenLogprobs, of_request
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scheduler import Plan, Scheduler
from graph_gemma.runners.engine.scoring import ScoreRequest, Scoring, make_scoring
from graph_gemma.runners.engine.sequence import Sequence
from graph_gemma.runners.engine.statistics import Statistics
from graph_gemma.runners.engine.step import StepPreparation
from graph_gemma.runners.engine.stop_matcher import StopMatcher


class Engine:
    """Runs many requests at once through a StepModel.

    One thread calls `step`; `add_request` and `abort` may be called from any thread, and from an `on_event`.
    tokenizer: a transformers tokenizer, or None if token ids are enough. eos_token_ids: tokens that end an answer.
    vocab_size: prompts with ids from it on are refused; None: unknown, not checked. image_token_ids: prompts that hold
    one are refused.
    """

    def __init__(
        self,
        model: StepModel,
        tokenizer: Any = None,
        eos_token_ids: Iterable[int] = (),
        vocab_size: int | None = None,
        image_token_ids: Iterable[int] = (),
    ) -> None:
        check_model(model)
        self.model = model
        self.statistics = Statistics()
        self.blocks = BlockManager(
            model.num_blocks, model.num_scratch_blocks, model.block_size, model.window, model.num_window_blocks
        )
        buckets = model.buckets
        num_rows = buckets.batch_sizes[-1] + buckets.prefill_batch_sizes[-1]
        rows = InputBatch(num_rows, buckets.table_widths[-1], model.window is not None)
        self.scheduler = Scheduler(buckets, self.blocks, rows, self.statistics)
        self._rows = rows
        self._preparation = StepPreparation(buckets, model.block_size, rows)
        self._decode = None if tokenizer is None else make_decode(tokenizer)
        self._special_tokens = {} if tokenizer is None else special_tokens(tokenizer)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = vocab_size
        self._image_token_ids = frozenset(image_token_ids)
        self._sequences: dict[int, Sequence] = {}  # unfinished, by request id
        self._events: list[TokenEvent] = []  # not yet returned by a step
        self._inbox: deque[Sequence] = deque()  # new ones, then again when aborted; emptied by `receive`
        self._ids = itertools.count()

    def add_request(
        self,
        prompt_token_ids: Iterable[int],
        sampling: SamplingParams | None = None,
        on_event: Callable[[TokenEvent], None] | None = None,
    ) -> int:
        """Queue a request; returns its id.

        `on_event` is called with each of its events while a step ends; if it raises, this request ends with
        finish_reason ``error`` and no other is affected. Raises UserError if the request can never be served.
        """
        return self._admit(prompt_token_ids, sampling or SamplingParams(), on_event)

    def add_score_request(self, request: ScoreRequest, on_event: Callable[[TokenEvent], None] | None = None) -> int:
        """Queue a text whose next tokens are to be scored; returns its id. Otherwise as `add_request`.

        Its only event is its last; its result has finish_reason ``scored``.
        """
        scoring = make_scoring(request, self._vocab_size)
        return self._admit(request.token_ids, SamplingParams(max_new_tokens=1), on_event, scoring)

    def abort(self, request_id: int) -> None:
        """End a request, wherever it is. It makes no more tokens; its last event comes with the next step.

        An unknown or finished request is left alone.
        """
        sequence = self._sequences.get(request_id)
        if sequence is not None and not sequence.aborted:
            sequence.aborted = True
            self._inbox.append(sequence)

    def _admit(
        self,
        prompt: Iterable[int],
        sampling: SamplingParams,
        on_event: Callable[[TokenEvent], None] | None,
        scoring: Scoring | None = None,
    ) -> int:
        token_ids = check_prompt(prompt, self.model.max_seq_len, self._vocab_size, self._image_token_ids)
        max_tokens = min(len(token_ids) + sampling.max_new_tokens, self.model.max_seq_len)
        check_room(len(token_ids), sampling, max_tokens, self.blocks)
        if sampling.stop and self._decode is None:
            raise UserError(
                f"stop is {list(sampling.stop)!r}, but the engine has no tokenizer to find strings with. "
                "Give the engine a tokenizer or leave stop empty."
            )
        sequence = Sequence(
            request_id=next(self._ids),
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            arrival_time=time.perf_counter(),
            detokenizer=None if self._decode is None else Detokenizer(self._decode),
            stop_matcher=StopMatcher(sampling.stop, self._special_tokens.values()) if sampling.stop else None,
            on_event=on_event,
            scoring=scoring,
        )
        self._sequences[sequence.request_id] = sequence
        self._inbox.append(sequence)
        return sequence.request_id

    def has_unfinished(self) -> bool:
        return bool(self._sequences or self._events)

    def step(self) -> list[TokenEvent]:
        """Run one step of the model, if there is anything to do; returns what happened to which request.

        If the model raises, no request has changed: the step may be tried again, or the requests aborted. If taking
        the tokens is interrupted (Ctrl-C), the request whose token was being taken is aborted; the others are as after
        a step or before it, and what happened until then is returned by the next step.
        """
        start = time.perf_counter()
        self._receive()
        plan = self.scheduler.schedule()
        if plan is None:
            return self._pop_events()
        bucket, rows, ending = self._preparation.choose(plan)
        self._preparation.fill(self.model.inputs(bucket), plan, rows, ending)
        run_start = time.perf_counter()
        output = self.model.run(bucket)
        run_end = time.perf_counter()
        errors = self._find_not_finite(bucket, plan, output)
        used = self.blocks.num_used, self.blocks.num_window_used
        if plan.sequences[0].scoring is None:
            self._rows.append(rows[ending], output.token_ids[: len(rows)][ending])
        self._take_tokens(plan, bucket, ending.tolist(), output, run_end, errors)
        end = time.perf_counter()
        host_s = (end - start) - (run_end - run_start)
        self.statistics.record(plan.decode, sum(plan.counts), end - start, host_s, *used)
        return self._pop_events()

    def receive(self) -> list[TokenEvent]:
        """Apply what `add_request` and `abort` left; the first thing that `step` does."""
        self._receive()
        return self._pop_events()

    def _pop_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _receive(self) -> None:
        while self._inbox:
            sequence = self._inbox.popleft()
            if sequence.request_id not in self._sequences:
                continue  # it ended in the step in which it was aborted
            if not sequence.received:
                sequence.received = True
                self.scheduler.add(sequence)
            elif sequence.aborted:
                self._end(sequence, "abort")

    def _find_not_finite(self, bucket: Bucket, plan: Plan, output: StepOutput) -> dict[int, Exception]:
        """The error of each row of the step whose logits are not finite, also where its prompt goes on."""
        rows = output.not_finite(plan.places(bool(bucket.scored)))
        return dict(zip(rows, self.model.explain_not_finite(bucket, rows), strict=True)) if rows else {}

    def _take_tokens(
        self,
        plan: Plan,
        bucket: Bucket,
        ending: list[bool],
        output: StepOutput,
        now: float,
        errors: dict[int, Exception],
    ) -> None:
        token_ids = output.token_ids.tolist()
        sequence = plan.sequences[0]
        try:
            for index, sequence in enumerate(plan.sequences):
                if sequence.aborted:
                    continue
                if index in errors:
                    self._end(sequence, "error", errors[index])
                else:
                    self._take_row(plan, bucket, index, ending[index], token_ids, output, now)
        except BaseException:
            self._recover(plan, sequence)
            raise

    def _take_row(
        self,
        plan: Plan,
        bucket: Bucket,
        index: int,
        ending: bool,
        token_ids: list[int],
        output: StepOutput,
        now: float,
    ) -> None:
        """Take what a step computed for one of its sequences; ending: whether that is its next token, or all scores."""
        sequence = plan.sequences[index]
        if sequence.scoring is not None and bucket.scored:
            sequence.scoring.take(output, index, sequence.num_computed, plan.counts[index])
        sequence.num_computed += plan.counts[index]
        self.scheduler.computed(sequence)
        if not ending:
            return
        if sequence.scoring is not None:
            self._end(sequence, "scored")
            return
        if not plan.decode:
            self.scheduler.prompt_computed(sequence)
        if sequence.first_token_time is None:
            sequence.first_token_time = now
        sequence.last_token_time = now
        event = TokenEvent(sequence.request_id, token_ids[index])
        if sequence.sampling.logprobs is not None:
            event.logprobs = TokenLogprobs.of_row(output, index, sequence.sampling.logprobs)
            sequence.logprobs.append(event.logprobs)
        self._take_token(sequence, event)

    def _recover(self, plan: Plan, interrupted: Sequence) -> None:
        """After an interruption: rows forget tokens that were not taken, so that the next step computes them again.

        Of `interrupted`, whose token was being taken, only a part may have been recorded: it ends.
        """
        for sequence in plan.sequences:
            if sequence.request_id in self._sequences and sequence.row >= 0:
                self._rows.rewind(sequence)
        self.abort(interrupted.request_id)

    def _take_token(self, sequence: Sequence, event: TokenEvent) -> None:
        """Add the event's token to its sequence, fill in its text, and call the request's `on_event`.

        What goes wrong here (a tokenizer that fails, an `on_event` that raises) ends this request only.
        """
        assert event.token_id is not None
        sequence.token_ids.append(event.token_id)
        self._events.append(event)
        try:
            reason = self._add_text(sequence, event)
        except BaseException as error:
            event.result = self._finish(sequence, "error", of_request(error))
        else:
            if reason is not None:
                event.result = self._finish(sequence, reason)
        self._notify(sequence, event)

    def _add_text(self, sequence: Sequence, event: TokenEvent) -> FinishReason | None:
        """Fill in `event.text`; returns why the request ends with this token, or None."""
        sampling, detokenizer, matcher = sequence.sampling, sequence.detokenizer, sequence.stop_matcher
        reason: FinishReason | None = None
        if event.token_id in self._eos_token_ids and not sampling.ignore_eos:
            reason = "stop"
        elif len(sequence.token_ids) >= sequence.max_tokens:
            reason = "length"
        if detokenizer is None:
            return reason
        # An end-of-sequence token has no text, even where the tokenizer does not count it as special.
        piece = "" if reason == "stop" else detokenizer.add(event.token_id)  # type: ignore[arg-type]
        if reason is not None:
            piece += detokenizer.flush()
        if matcher is not None:
            piece, found = matcher.feed(piece)
            if not found and reason != "stop" and event.token_id in self._special_tokens:
                more, found = matcher.feed(self._special_tokens[event.token_id], visible=False)
                piece += more
            if found:
                reason = "stop"
            elif reason is not None:
                piece += matcher.flush()
        if piece:
            event.text = piece
            sequence.text.append(piece)
        return reason

    def _end(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        """End a request with an event that has no token."""
        event = TokenEvent(sequence.request_id)
        event.result = self._finish(sequence, reason, error)
        self._events.append(event)
        self._notify(sequence, event)

    def _notify(self, sequence: Sequence, event: TokenEvent) -> None:
        if sequence.on_event is None:
            return
        try:
            sequence.on_event(event)
        except BaseException as error:
            if event.result is None:
                event.result = self._finish(sequence, "error", of_request(error))
            elif event.result.error is None:
                event.result.finish_reason, event.result.error = "error", of_request(error)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> RequestResult:
        self.scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
        first, last = sequence.first_token_time, sequence.last_token_time
        speed = None
        if first is not None and last is not None and last > first:
            speed = (sequence.num_new_tokens - 1) / (last - first)
        return RequestResult(
            request_id=sequence.request_id,
            prompt_token_ids=sequence.token_ids[: sequence.num_prompt_tokens].tolist(),
            token_ids=sequence.token_ids[sequence.num_prompt_tokens :].tolist(),
            text="".join(sequence.text),
            finish_reason=reason,
            seed=sequence.seed,
            ttft_s=None if first is None else first - sequence.arrival_time,
            decode_tokens_per_s=speed,
            logprobs=None if sequence.sampling.logprobs is None else sequence.logprobs,
            scores=None if sequence.scoring is None else sequence.scoring.scores(),
            num_cached_tokens=sequence.num_cached_tokens,
            num_preemptions=sequence.num_preemptions,
            error=error,
        )
