"""phase=speed and phase=max_batch: cases run by our engine and its peers in turn."""

from __future__ import annotations

from itertools import count
from statistics import median

from runners.bench.bandwidth import ReadProbe, decode_step_bytes
from runners.bench.engine_runner import EngineRunner
from runners.bench.peers import make_peers
from runners.bench.request import Request
from runners.bench.results import Row
from runners.bench.timing import Case, Runner, Timing, random_prompts, summarise
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM
from runners.memory import peak_memory


class SpeedTest:
    """Runs cases. Every run has new prompts; runners take turns, so that a change of the machine's speed hits all."""

    def __init__(self, request: Request, llm: LLM) -> None:
        self._request = request
        self._llm = llm
        self._device = llm.loaded.model.recipe.backend.device
        self._seeds = count()
        self._warm_up(request.cases)
        self._peak_bytes = peak_memory(self._device)  # before peers and probe take memory
        self._runners: list[Runner] = [EngineRunner(llm), *make_peers(request.peers, llm.loaded)]
        self._probe = ReadProbe(self._device)

    def measure(self, case: Case) -> list[Row]:
        """A row per runner; each is run once before it counts."""
        for runner in self._runners:
            self._run(runner, case)
        timings: dict[str, list[Timing]] = {runner.name: [] for runner in self._runners}
        bandwidths = []
        for _ in range(self._request.repeats):
            for runner in self._runners:
                timings[runner.name].append(self._run(runner, case))
                bandwidths.append(self._probe.bytes_per_s())
        return [self._row(case, name, found, median(bandwidths)) for name, found in timings.items()]

    def _row(self, case: Case, runner: str, timings: list[Timing], bandwidth: float) -> Row:
        summary = summarise(case, runner, timings)
        step_bytes = decode_step_bytes(self._llm.loaded.model, case)
        return Row(
            model=self._request.name,
            summary=summary,
            bytes_per_s=step_bytes / summary.step_s if summary.step_s else None,
            bandwidth=bandwidth,
            peak_bytes=self._peak_bytes if runner == EngineRunner.name else None,
        )

    def _run(self, runner: Runner, case: Case) -> Timing:
        return runner.run(random_prompts(case, self._request.model.config.vocab_size, next(self._seeds)), case.answer)

    def _warm_up(self, cases: list[Case]) -> None:
        for case in cases:
            prompts = random_prompts(case, self._request.model.config.vocab_size, next(self._seeds))
            self._llm.warm_up(prompts, SamplingParams(max_new_tokens=case.answer), once=True)


def largest_batches(test: SpeedTest, request: Request) -> tuple[list[Row], list[str]]:
    """The rows measured, and for each length a line that names the largest batch within the latency limit."""
    rows: list[Row] = []
    lines = []
    for prompt, answer in dict.fromkeys((case.prompt, case.answer) for case in request.cases):
        best = None
        for batch in sorted({case.batch for case in request.cases}):
            measured = test.measure(Case(batch, prompt, answer))
            rows += measured
            if measured[0].summary.step_s > request.latency_limit_s:
                break
            best = batch
        found = "no batch" if best is None else f"batch {best}"
        lines.append(f"{prompt} + {answer} tokens: {found} is within {request.latency_limit_s * 1e3:g} ms per token")
    return rows, lines
