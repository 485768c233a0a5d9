"""generate_async: requests of tasks share steps, end alone when cancelled, and hear of a model that fails."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from support.engine_drivers import PROMPTS, SAMPLING, Panic, expected, make_llm
from support.engine_fakes import assert_nothing_held, small_buckets

from graph_gemma.runners.engine import EngineDriver, SamplingParams


async def collect(llm: EngineDriver, index: int) -> list[int]:
    return [event.token_id async for event in llm.generate_async(PROMPTS[index], SAMPLING)]


def test_async_requests_share_steps_and_get_their_own_tokens() -> None:
    llm = make_llm(buckets=small_buckets(batch=6, prefill_batch=4))

    async def serve() -> list[list[int]]:
        return await asyncio.gather(*(collect(llm, index) for index in range(6)))

    assert asyncio.run(serve()) == [expected(index) for index in range(6)]
    assert max(rows for _, rows, _ in llm.engine.model.steps) > 1  # type: ignore[attr-defined]
    assert_nothing_held(llm.engine)
    assert asyncio.run(collect(llm, 2)) == expected(2), "another event loop may follow"


def test_async_steps_leave_the_event_loop_free() -> None:
    llm = make_llm()
    threads: set[int] = set()
    llm.engine.model.before_run = lambda _: (threads.add(threading.get_ident()), time.sleep(0.01))  # type: ignore[attr-defined]

    async def serve() -> int:
        ticks = 0
        request = asyncio.create_task(collect(llm, 0))
        while not request.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(serve()) > 20
    assert threading.get_ident() not in threads
    assert len(threads) == 1


def test_a_cancelled_task_aborts_its_request_only() -> None:
    llm = make_llm()

    async def serve() -> list[int]:
        long = SamplingParams(max_new_tokens=50)

        async def endless() -> None:
            async for _ in llm.generate_async([7, 7], long):
                pass

        cancelled = asyncio.create_task(endless())
        other = asyncio.create_task(collect(llm, 1))
        while not llm.engine.statistics.decode_steps:
            await asyncio.sleep(0)
        cancelled.cancel()
        tokens = await other
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        while llm.engine.has_unfinished():
            await asyncio.sleep(0.001)
        return tokens

    assert asyncio.run(serve()) == expected(1)
    assert llm.engine.statistics.decode_tokens < 50
    assert_nothing_held(llm.engine)


@pytest.mark.parametrize(
    ("error", "shown"),
    [(RuntimeError("device lost"), "device lost"), (Panic("lost"), "The engine has ended: Panic('lost')")],
)
def test_a_failing_step_reaches_every_waiting_task(error: BaseException, shown: str) -> None:
    llm = make_llm()

    def fail(step: int) -> None:
        if step == 5:
            raise error

    llm.engine.model.before_run = fail  # type: ignore[attr-defined]

    async def serve() -> list[object]:
        tasks = [asyncio.wait_for(collect(llm, index), 60) for index in range(4)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        llm.engine.model.before_run = None  # type: ignore[attr-defined]
        return [*outcomes, await collect(llm, 5)]

    *failed, tokens = asyncio.run(serve())
    assert [str(one) for one in failed] == [shown] * 4
    assert tokens == expected(5)
    assert_nothing_held(llm.engine)
