"""phase=host: the time of a decode step outside the compiled graph."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from graph_gemma.runners.benchmarking.engine_runner import exactly, warm_up
from graph_gemma.runners.benchmarking.request import Request
from graph_gemma.runners.benchmarking.timed_backend import timed_recipe
from graph_gemma.runners.benchmarking.timing import Case, random_prompts
from graph_gemma.runners.llm import LLM


@dataclass(frozen=True)
class HostTime:
    """Seconds of the decode steps of the full batch."""

    case: Case
    backend: str  # the description of what ran the steps
    step_s: list[float]  # of each step
    outside_s: list[float]  # of each step, outside its compiled function

    def cells(self, model: str) -> dict[str, str]:
        """Column -> text; empty where no step had the full batch."""
        steps = bool(self.step_s)
        return {
            "Model": model,
            "Batchsize": str(self.case.batch),
            "In_seq": str(self.case.prompt),
            "Out_seq": str(self.case.answer),
            "Steps": str(len(self.step_s)),
            "Step p50(ms)": f"{median(self.step_s) * 1e3:.3f}" if steps else "",
            "Outside p50(us)": f"{median(self.outside_s) * 1e6:.1f}" if steps else "",
            "Outside p90(us)": f"{np.percentile(self.outside_s, 90) * 1e6:.1f}" if steps else "",
            "Share outside": f"{sum(self.outside_s) / sum(self.step_s):.4f}" if steps else "",
            "Backend": self.backend,
        }

    def line(self) -> str:
        if not self.step_s:
            return f"{self.case}: the batch was never full"
        return (
            f"{self.case}: {median(self.outside_s) * 1e6:.0f} us of a step's {median(self.step_s) * 1e3:.2f} ms are "
            f"outside the graph (90 % of steps: at most {np.percentile(self.outside_s, 90) * 1e6:.0f} us)"
        )


def measure_host(request: Request) -> list[HostTime]:
    """Run the cases, each once before it counts and then `repeats` times, in this process."""
    settings = request.model
    with LLM(settings) as llm:
        model = llm.loaded.model
        model.recipe, backend = timed_recipe(model.recipe)
        warm_up(llm, request.cases)
        found = []
        for number, case in enumerate(request.cases):
            seed = number * (request.repeats + 1)
            result = HostTime(case, llm.loaded.backend, [], [])
            for repeat in range(request.repeats + 1):
                if repeat == 1:
                    result = HostTime(case, llm.loaded.backend, [], [])
                _run(llm, backend.runs, random_prompts(case, settings.config.vocab_size, seed + repeat), result)
            found.append(result)
        return found


def _run(llm: LLM, runs: list[float], prompts: list[list[int]], result: HostTime) -> None:
    engine, statistics = llm.engine, llm.engine.statistics
    sampling = exactly(result.case.answer)
    for prompt in prompts:
        engine.add_request(prompt, sampling)
    while engine.has_unfinished():
        runs.clear()
        decode_steps = statistics.decode_steps
        start = time.perf_counter()
        events = engine.step()
        step_s = time.perf_counter() - start
        if statistics.decode_steps > decode_steps and len(events) == len(prompts):
            result.step_s.append(step_s)
            result.outside_s.append(step_s - sum(runs))
