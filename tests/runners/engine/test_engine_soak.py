"""Two thousand requests leave nothing behind."""

from __future__ import annotations

import gc
import sys

import numpy as np
from support.engine_fakes import FakeModel, assert_nothing_held, byte_level_tokenizer, small_buckets

from graph_gemma.runners.engine import Engine, SamplingParams


def serve(engine: Engine, count: int, seed: int) -> None:
    """Small requests of all kinds, up to 40 at a time, some of them aborted."""
    rng = np.random.default_rng(seed)
    started = 0
    while started < count or engine.has_unfinished():
        while started < count and len(engine.scheduler.waiting) < 30:
            sampling = SamplingParams(
                temperature=float(rng.integers(0, 2)),
                max_new_tokens=int(rng.integers(1, 13)),
                stop=("a",) if rng.random() < 0.2 else (),
                logprobs=2 if rng.random() < 0.2 else None,
            )
            shared = [5] * int(rng.integers(0, 2)) * 6
            request_id = engine.add_request([*shared, *rng.integers(0, 250, rng.integers(1, 9)).tolist()], sampling)
            if rng.random() < 0.1:
                engine.abort(request_id)
            started += 1
            engine.receive()
        engine.step()


def test_memory_ends_where_it_began() -> None:
    model = FakeModel(small_buckets(batch=8, prefill_batch=4, width=8), usable_blocks=20, max_seq_len=32)
    engine = Engine(model, byte_level_tokenizer())
    model.blocks = engine.blocks

    def state() -> tuple[int, int]:
        model.steps.clear()
        gc.collect()
        return sys.getallocatedblocks(), len(gc.get_objects())

    serve(engine, 300, seed=0)  # the cache of prefixes is full from here on, and most buckets have been used
    memory, objects = state()
    serve(engine, 2000, seed=1)
    memory_after, objects_after = state()
    assert_nothing_held(engine)
    assert engine.statistics.preemptions > 0
    assert engine.statistics.cached_prompt_tokens > 0
    assert objects_after - objects < 200
    assert memory_after - memory < 1000, "less than one object in two requests"
