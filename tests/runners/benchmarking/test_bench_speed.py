"""Turns of ours and the peers, on fake runners: equal prompts, new in each repeat; a peer that fails is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graph_gemma.runners.benchmarking import peer_registry as peers
from graph_gemma.runners.benchmarking import speed
from graph_gemma.runners.benchmarking.results import Row
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.speed import SpeedTest
from graph_gemma.runners.benchmarking.timing import Case, Timing
from graph_gemma.runners.benchmarking.worker import WorkerError

CASE = Case(1, 4, 3)
CONFIG = SimpleNamespace(vocab_size=100, quantize=None)


@dataclass
class FakeWorker:
    name: str
    log: list[tuple[str, Any]]
    fails_at: int = 99
    runs: int = 0
    facts: Facts = field(default_factory=lambda: Facts("float32", 10, 10, {None: 1}, ""))

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "peak_bytes":
            return 20
        self.runs += 1
        if self.runs == self.fails_at:
            raise WorkerError("ValueError: broken")
        self.log.append((self.name, arguments[0]))
        return Timing(0.3, [0.1], 0.1, [0.1, 0.1], answers=[[1, 2, 3 if self.name == "ours" else 4]])

    def get(self, attribute: str) -> Any:
        return getattr(self, attribute)

    def __enter__(self) -> FakeWorker:
        self.log.append((f"+{self.name}", None))
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append((f"-{self.name}", None))


class FakeProbe:
    def measure(self) -> list[float]:
        return [1e9, 2e9, 3e9]

    def close(self) -> None:
        pass


def request(**changed: Any) -> Any:
    model = SimpleNamespace(config=CONFIG, world_size=1, random_weights=True, dtype="float32", quantization=None)
    values = {"name": "tiny", "model": model, "cases": [CASE], "repeats": 2, "peers": [], "at_once": 3}
    return SimpleNamespace(**{**values, **changed})


def test_runners_share_prompts_and_each_repeat_has_new_ones() -> None:
    log: list[tuple[str, Any]] = []
    workers: list[Any] = [FakeWorker("ours", log), FakeWorker("peer", log)]
    rows = SpeedTest(request(), 1, "cpu", lambda rows: None).measure(CASE, workers, FakeProbe())  # type: ignore[arg-type]
    assert [name for name, _ in log] == ["ours", "peer"] * 3
    prompts = [prompts for _, prompts in log]
    assert prompts[::2] == prompts[1::2]
    assert len({str(prompt) for prompt in prompts}) == 3
    assert [row.runner for row in rows] == ["ours", "peer"]
    assert rows[0].bandwidth == (2e9, 1e9, 3e9)
    assert rows[0].equal_tokens is None
    assert rows[1].equal_tokens == pytest.approx(2 / 3)


def test_a_peer_that_fails_is_dropped_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[tuple[str, Any]] = []
    workers: list[Any] = [FakeWorker("ours", log), FakeWorker("bad", log, fails_at=2), FakeWorker("good", log)]
    rows = SpeedTest(request(), 1, "cpu", lambda rows: None).measure(CASE, workers, FakeProbe())  # type: ignore[arg-type]
    assert [row.runner for row in rows] == ["ours", "good"]
    assert [worker.name for worker in workers] == ["ours", "good"]
    assert "bad is dropped: ValueError: broken" in capsys.readouterr().err


def test_our_own_failure_ends_the_run() -> None:
    workers: list[Any] = [FakeWorker("ours", [], fails_at=1)]
    with pytest.raises(WorkerError, match="broken"):
        SpeedTest(request(), 1, "cpu", lambda rows: None).measure(CASE, workers, FakeProbe())  # type: ignore[arg-type]


def test_too_many_peers_run_in_rounds_with_ours_in_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log: list[tuple[str, Any]] = []
    reported: list[Row] = []

    def start(name: str, *arguments: Any) -> FakeWorker:
        if name == "c":
            raise WorkerError("ImportError: no c")
        return FakeWorker(name, log)

    monkeypatch.setattr(speed, "Worker", start)
    monkeypatch.setattr(speed, "ReadProbe", lambda *arguments: FakeProbe())
    monkeypatch.setattr(speed, "in_new_process", lambda *arguments: None)
    names = ["a", "b", "c", "d", "absent"]
    known = {name: peers.Peer(name, {f"no_{name}" if name == "absent" else "json": f"pip-{name}"}) for name in names}
    monkeypatch.setattr(peers, "PEERS", known)
    SpeedTest(request(peers=names), 1, "cpu", reported.extend).run()
    assert [(row.round, row.runner) for row in reported] == [
        (1, "ours"),
        (1, "a"),
        (1, "b"),
        (2, "ours"),
        (2, "d"),
    ]
    marks = [name for name, _ in log if name[0] in "+-"]
    assert marks == ["+ours", "+a", "+b", "-b", "-a", "+d", "-d", "-ours"]
    err = capsys.readouterr().err
    assert "absent is left out, as it is not installed: pip install pip-absent" in err
    assert "c is left out: ImportError: no c" in err


def test_a_quantized_checkpoint_has_no_weights_for_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=9, quantize="w8a8"), random_weights=False)
    test = SpeedTest(request(peers=["transformers"], model=model), 1, "cpu", lambda rows: None)
    assert test._usable_peers(tmp_path) == []
    assert "floating-point original" in capsys.readouterr().err
