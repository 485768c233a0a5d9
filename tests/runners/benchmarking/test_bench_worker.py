"""Processes of their own: results, errors, ends, and memory that is not another's."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.benchmarking.worker import Worker, WorkerError, in_new_process


class Counter:
    """What a worker holds in these tests."""

    def __init__(self, count: int) -> None:
        self.count = count

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def fail(self, kind: str) -> None:
        raise UserError("a setting") if kind == "user" else ValueError("first line\nsecond")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def peak_kilobytes() -> int:
    import torch

    from graph_gemma.runners.backends.memory import peak_memory

    return peak_memory(torch.device("cpu")) // 1024


def test_an_object_keeps_its_state_and_survives_errors() -> None:
    with Worker("counter", partial(Counter, 3)) as worker:
        assert worker.call("add", 2) == 5
        with pytest.raises(WorkerError, match=r"^ValueError: first line$"):
            worker.call("fail", "value")
        with pytest.raises(UserError, match=r"^a setting$"):
            worker.call("fail", "user")
        assert worker.call("add", 1) == 6
        assert worker.get("count") == 6
        with pytest.raises(WorkerError, match=r"SIGKILL.*memory"):
            worker.call("die")
        with pytest.raises(WorkerError):
            worker.call("add", 1)


def test_what_fails_to_start_says_why() -> None:
    with pytest.raises(WorkerError, match="TypeError"):
        Worker("counter", Counter)  # type: ignore[arg-type]


def test_a_processes_peak_is_its_own() -> None:
    held = bytearray(os.urandom(1)) * (700 << 20)
    assert in_new_process("peak", peak_kilobytes) < 600 << 10
    del held
