"""Requests that arrive at an engine over time, some of them cancelled, served to their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_gemma.runners.engine import Engine, RequestResult, SamplingParams
from support.engine_fakes import assert_nothing_held


@dataclass
class Request:
    arrival: int
    prompt: list[int]
    sampling: SamplingParams
    abort_after: int | None  # steps after its arrival


@dataclass
class Answer:
    """A request's result, and the tokens that its events told before it."""

    result: RequestResult
    told: list[int]


def serve(engine: Engine, batch: Sequence[Request], most_steps: int) -> list[Answer]:
    """The answers, in the order of `batch`; each request has exactly one result, and the engine holds nothing then."""
    ids: dict[int, int] = {}  # request id -> place in the batch
    aborts: list[tuple[int, int]] = []
    results: dict[int, RequestResult] = {}
    told: dict[int, list[int]] = {place: [] for place in range(len(batch))}
    todo = sorted(range(len(batch)), key=lambda place: batch[place].arrival)
    step = 0
    while todo or engine.has_unfinished():
        while todo and batch[todo[0]].arrival <= step:
            request = batch[place := todo.pop(0)]
            request_id = engine.add_request(request.prompt, request.sampling)
            ids[request_id] = place
            if request.abort_after is not None:
                aborts.append((step + request.abort_after, request_id))
        for when, request_id in aborts:
            if when == step:
                engine.abort(request_id)
        for event in engine.step():
            place = ids[event.request_id]
            assert place not in results, "news of a request after its end"
            if event.token_id is not None:
                told[place].append(event.token_id)
            if event.result is not None:
                results[place] = event.result
        step += 1
        assert step < most_steps, "the requests come to no end"
    assert_nothing_held(engine)
    assert results.keys() == told.keys()
    return [Answer(results[place], told[place]) for place in range(len(batch))]
