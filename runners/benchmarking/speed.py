"""phase=speed: measure cases with our engine and its peers in turn."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.benchmarking import engine_runner
from graph_gemma.runners.benchmarking import peer_registry as peers
from graph_gemma.runners.benchmarking.bandwidth import ReadProbe, spread
from graph_gemma.runners.benchmarking.request import Request
from graph_gemma.runners.benchmarking.results import Row
from graph_gemma.runners.benchmarking.timing import Case, Timing, equal_share, random_prompts, summarize
from graph_gemma.runners.benchmarking.worker import Worker, WorkerError, in_new_process

OURS = "ours"


@dataclass
class SpeedTest:
    """Measures cases by runners that take turns, each in a process of its own, so that a change of the machine's speed
    hits all of them. Every repeat has prompts of its own, the same for every runner.

    report: called with the rows of each case as soon as it is measured.
    """

    request: Request
    threads: int
    device: str
    report: Callable[[list[Row]], None]
    _seeds: count[int] = field(default_factory=count)

    def run(self) -> None:
        """Raises UserError if our own engine cannot run; a peer that cannot is reported and left out."""
        request = self.request
        with ExitStack() as stack:
            ours = stack.enter_context(self._start_ours())
            probe = ReadProbe(self.device, self.threads)
            stack.callback(probe.close)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-weights-")))
            names = self._usable_peers(folder)
            together = max(1, request.at_once - 1)
            groups = [names[i : i + together] for i in range(0, len(names), together)] or [[]]
            turns = len(request.cases) * (request.repeats + 1) * (len(names) + len(groups))
            bar = stack.enter_context(tqdm(total=turns, unit="run", file=sys.stderr, dynamic_ncols=True))
            for number, group in enumerate(groups, 1):
                with ExitStack() as alive:
                    workers = [ours]
                    for name in [name for name in group if self._convert(name, folder)]:
                        worker = self._start_peer(name, folder)
                        if worker is not None:
                            workers.append(alive.enter_context(worker))
                    for case in request.cases:
                        self.report(self.measure(case, workers, probe, number, bar.update))

    def measure(
        self,
        case: Case,
        workers: list[Worker],
        probe: ReadProbe,
        number: int = 1,
        done: Callable[[], object] = lambda: None,
    ) -> list[Row]:
        """A row per worker, ours first. A peer that fails is taken out of `workers`."""
        timings: dict[str, list[Timing]] = {worker.name: [] for worker in workers}
        bandwidths: list[float] = []
        for repeat in range(self.request.repeats + 1):  # the first run does not count
            prompts = random_prompts(case, self.request.model.config.vocab_size, next(self._seeds))
            for worker in workers[:]:
                timing = _attempt(worker, prompts, case.answer)
                done()
                if timing is None:
                    workers.remove(worker)
                    del timings[worker.name]
                elif repeat:
                    timings[worker.name].append(timing)
                    bandwidths += probe.measure()
        if self.device != "cpu":  # every rank has a device of its own, and the memory of it
            bandwidths = [value * self.request.model.world_size for value in bandwidths]
        rows = []
        for worker in workers:
            found = timings[worker.name]
            shares = [
                equal_share(case, ours.answers, theirs.answers)
                for ours, theirs in zip(timings[OURS], found, strict=True)
            ]
            rows.append(
                Row(
                    model=self.request.name,
                    runner=worker.name,
                    summary=summarize(case, found),
                    facts=worker.get("facts"),
                    bandwidth=spread(bandwidths),
                    peak_bytes=worker.call("peak_bytes"),
                    equal_tokens=None if worker.name == OURS else mean(shares),
                    round=number,
                )
            )
        return rows

    def _start_ours(self) -> Worker:
        start = partial(engine_runner.start, self.request.model, self.request.cases)
        return Worker(OURS, start, self.threads)

    def _usable_peers(self, folder: Path) -> list[str]:
        """The peers that are installed, with their weights written to `folder`."""
        request, names = self.request, []
        for name in request.peers:
            missing = peers.missing_packages(name)
            if reason := peers.unsuited(name, request.model.config):
                _say(f"peers: {name} is left out: {reason}.")
            elif missing:
                _say(f"peers: {name} is left out, as it is not installed: pip install {' '.join(missing)}")
            else:
                names.append(name)
        if names and request.model.config.quantize is not None and not request.model.random_weights:
            _say(
                f"peers: {', '.join(names)} left out: the checkpoint is quantized, and the floating-point original "
                "that they need is not in it. Give the original with quant=..., or weights=random."
            )
            return []
        if names:
            try:
                in_new_process("weights", partial(peers.write_weights, request.model, folder / "weights"), self.threads)
            except (WorkerError, UserError) as error:
                _say(f"peers: {', '.join(names)} left out: their weights could not be written ({error})")
                return []
        return names

    def _convert(self, name: str, folder: Path) -> bool:
        """Whether the peer can be started: before any other is, as converting takes memory too."""
        if not peers.PEERS[name].converts:
            return True
        try:
            in_new_process(f"{name} (conversion)", partial(peers.convert, name, self._job(name, folder)), self.threads)
        except (WorkerError, UserError) as error:
            _say(f"peers: {name} is left out: {error}")
            return False
        return True

    def _start_peer(self, name: str, folder: Path) -> Worker | None:
        try:
            return Worker(name, partial(peers.start, name, self._job(name, folder)), self.threads)
        except (WorkerError, UserError) as error:
            _say(f"peers: {name} is left out: {error}")
            return None

    def _job(self, name: str, folder: Path) -> peers.PeerJob:
        request = self.request
        return peers.PeerJob(
            model=request.model,
            directory=folder / "weights",
            converted=folder / name,
            cases=tuple(request.cases),
            threads=self.threads,
            device=self.device,
        )


def _attempt(worker: Worker, prompts: list[list[int]], answer: int) -> Timing | None:
    """What a worker measured; None if it is a peer and failed, which is said."""
    try:
        timing: Timing = worker.call("run", prompts, answer)
        return timing
    except (WorkerError, UserError) as error:
        if worker.name == OURS:
            raise
        _say(f"peers: {worker.name} is dropped: {error}")
        return None


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
