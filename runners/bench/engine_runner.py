"""Our engine as a runner of benchmark cases."""

from __future__ import annotations

import time

from runners.bench.timing import Timing
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM


class EngineRunner:
    """Times the engine's steps; all requests arrive at once."""

    name = "ours"

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        engine = self.llm.engine
        sampling = SamplingParams(max_new_tokens=answer, ignore_eos=True)
        start = last = time.perf_counter()
        waiting = {engine.add_request(prompt, sampling) for prompt in prompts}
        steps: list[float] = []
        first_s = 0.0
        while engine.has_unfinished():
            events = engine.step()
            now = time.perf_counter()
            if waiting:
                waiting.difference_update(event.request_id for event in events)
                first_s = now - start
            else:
                steps.append(now - last)
            last = now
        return Timing(first_s, steps)
