"""EngineDriver: generate, stream, generate_async and score on top of the engine's steps."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.engine import Engine
from graph_gemma.runners.engine.model import StepModel
from graph_gemma.runners.engine.result import RequestResult, Scores, TokenEvent, of_request, raise_errors
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scoring import ScoreRequest

Prompt = str | list[int]
Sink = Callable[[TokenEvent], None]


class EngineDriver:
    """A model, its tokenizer, and the engine that serves them.

    Use `generate` or `stream` from one thread, or `generate_async` from an event loop. Arguments as of Engine;
    without a tokenizer prompts are lists of token ids and results have no text.
    """

    def __init__(
        self,
        model: StepModel,
        tokenizer: Any = None,
        eos_token_ids: Iterable[int] = (),
        vocab_size: int | None = None,
        image_token_ids: Iterable[int] = (),
    ) -> None:
        self.engine = Engine(model, tokenizer, eos_token_ids, vocab_size, image_token_ids)
        self.tokenizer = tokenizer
        self._sinks: dict[int, Sink] = {}  # request id -> what takes its events
        self._lock = threading.Lock()  # held by the thread that runs a step
        self._stepping: int | None = None  # the thread that runs one
        self._driver: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._failed: dict[int, Callable[[BaseException], None]] = {}  # request id -> what takes the model's error

    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        sampling: SamplingParams | list[SamplingParams] | None = None,
        on_event: Callable[[int, TokenEvent], None] | None = None,
    ) -> list[RequestResult]:
        """Answer all prompts; results in the order of the prompts.

        prompts: a text or a list of token ids, or a list of those. sampling: for all, or one per prompt.
        on_event: called with the index of a prompt and each of its events as they happen; if it raises,
        that request ends with finish_reason ``error``. Raises UserError before anything is run if any prompt or setting
        is refused. An interruption (Ctrl-C) aborts the unfinished requests and is passed on.
        """
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        batch = cast(list[Prompt], [prompts] if single else list(prompts))
        settings = sampling if isinstance(sampling, list) else [sampling] * len(batch)
        if len(settings) != len(batch):
            raise UserError(f"sampling has {len(settings)} entries for {len(batch)} prompts; give one, or one each.")
        return self._run(
            partial(self._submit, prompt, setting, _numbered(on_event, index))
            for index, (prompt, setting) in enumerate(zip(batch, settings, strict=True))
        )

    def score(
        self, requests: Iterable[ScoreRequest], on_event: Callable[[int, TokenEvent], None] | None = None
    ) -> list[Scores]:
        """Log-probabilities of given tokens in given texts; scores in the order of the requests.

        Texts run in the same steps as far as they fit and share what they begin with. `on_event`, interruption and
        UserErrors are as in `generate`; an error in `on_event` is raised at the end.
        """

        def submit(index: int, request: ScoreRequest, sink: Sink) -> int:
            request_id = self.engine.add_score_request(request, _numbered(on_event, index))
            self._sinks[request_id] = sink
            return request_id

        results = self._run(partial(submit, index, request) for index, request in enumerate(requests))
        raise_errors(results)
        return [cast(Scores, result.scores) for result in results]

    def _run(self, submissions: Iterable[Callable[[Sink], int]]) -> list[RequestResult]:
        """Submit requests, run steps until they have ended, and return their results in order."""
        results: dict[int, RequestResult] = {}

        def take(event: TokenEvent) -> None:
            if event.result is not None:
                results[event.request_id] = event.result

        ids: list[int] = []
        try:
            for submit in submissions:
                ids.append(submit(take))
            while len(results) < len(ids):
                self._step()
        finally:
            self._forget(ids)
        return [results[request_id] for request_id in ids]

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Iterator[TokenEvent]:
        """The events of one prompt, as they happen. Closing the iterator aborts the request."""
        events: deque[TokenEvent] = deque()
        request_id = self._submit(prompt, sampling, None, events.append)
        try:
            while True:
                while not events:
                    self._step()
                event = events.popleft()
                yield event
                if event.result is not None:
                    return
        finally:
            self._forget([request_id])

    async def generate_async(self, prompt: Prompt, sampling: SamplingParams | None = None) -> AsyncIterator[TokenEvent]:
        """The events of one prompt, as they happen; requests of other tasks run in the same steps.

        Steps run in a thread of their own, so the event loop stays free. Closing the iterator, or cancelling the task
        that waits for it, aborts the request. An error of the model is raised to every task that waits.
        """
        queue: asyncio.Queue[TokenEvent | BaseException] = asyncio.Queue()
        request_id = self._submit(prompt, sampling, None, queue.put_nowait)
        self._failed[request_id] = queue.put_nowait
        self._start_driver()
        try:
            while True:
                event = await queue.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if event.result is not None:
                    return
        finally:
            self._failed.pop(request_id, None)
            if self._sinks.pop(request_id, None) is not None:
                self.engine.abort(request_id)  # carried out by the driver's next step

    def abort(self, request_id: int) -> None:
        """End a request (its id is in its events); its last event has finish_reason ``abort``."""
        self.engine.abort(request_id)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer puts around a text."""
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise UserError("A prompt is a text, but there is no tokenizer. Give token ids, or a tokenizer.")
        try:
            return list(self.tokenizer.encode(prompt))
        except BaseException as error:
            raise of_request(error) from None

    def _submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None,
        on_event: Sink | None,
        sink: Sink,
    ) -> int:
        request_id = self.engine.add_request(self.encode(prompt), sampling, on_event)
        self._sinks[request_id] = sink
        return request_id

    def _step(self) -> None:
        self._dispatch(self._locked_step())

    def _dispatch(self, events: list[TokenEvent]) -> None:
        for event in events:
            sink = self._sinks.get(event.request_id)
            if event.result is not None:
                self._sinks.pop(event.request_id, None)
            if sink is not None:
                sink(event)

    def _forget(self, request_ids: list[int]) -> None:
        """Abort those of the requests that have not ended, and free what they hold."""
        unfinished = [request_id for request_id in request_ids if self._sinks.pop(request_id, None) is not None]
        for request_id in unfinished:
            self.engine.abort(request_id)
        # An iterator may be closed inside a step, by a callback or by Python's garbage collector: whoever runs the
        # step, the requests are then ended by the next one.
        if unfinished and self._lock.acquire(blocking=False):
            try:
                events = self.engine.receive()
            finally:
                self._lock.release()
            self._dispatch(events)

    def _start_driver(self) -> None:
        if self._driver is None or self._driver.done():
            self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="engine")
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        """Run steps while any request is unfinished, and hand out their events in the event loop."""
        loop = asyncio.get_running_loop()
        try:
            while self.engine.has_unfinished():
                self._dispatch(await loop.run_in_executor(self._executor, self._locked_step))
        except BaseException as error:
            told = error if isinstance(error, Exception) else RuntimeError(f"The engine has ended: {error!r}")
            for tell in list(self._failed.values()):
                tell(told)
            if isinstance(error, KeyboardInterrupt | SystemExit | asyncio.CancelledError):
                raise

    def _locked_step(self) -> list[TokenEvent]:
        if self._stepping == threading.get_ident():
            raise RuntimeError(
                "generate, stream or score was called while a step runs, from an on_event or a tokenizer. Call it "
                "after the step: when generate has returned, or from another thread."
            )
        with self._lock:
            self._stepping = threading.get_ident()
            try:
                return self.engine.step()
            finally:
                self._stepping = None


def _numbered(on_event: Callable[[int, TokenEvent], None] | None, index: int) -> Sink | None:
    return None if on_event is None else lambda event: on_event(index, event)
