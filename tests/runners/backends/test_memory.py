"""Memory of the device that a model runs on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from graph_gemma.runners.backends import memory
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.memory import free_memory, peak_memory

ROOT = Path(__file__).parents[3]
NPU = SimpleNamespace(type="npu")  # torch has no such device where torch_npu is not loaded


def test_an_npus_memory_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(mem_get_info=lambda device: (12, 64), max_memory_allocated=lambda device: 34)
    monkeypatch.setattr(torch, "npu", module, raising=False)
    assert free_memory(NPU) == 12  # type: ignore[arg-type]
    assert peak_memory(NPU) == 34  # type: ignore[arg-type]


def test_the_standins_memory_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "is_standin", lambda: True)
    cpu = torch.device("cpu")
    assert free_memory(NPU) == pytest.approx(free_memory(cpu), rel=0.5)  # type: ignore[arg-type]
    assert peak_memory(NPU) == pytest.approx(peak_memory(cpu), rel=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("type_", "on_standin", "divided"), [("npu", False, 1), ("npu", True, 2), ("cpu", True, 2)])
def test_ranks_share_the_hosts_memory_and_no_device(
    type_: str, on_standin: bool, divided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "is_standin", lambda: on_standin)
    module = SimpleNamespace(mem_get_info=lambda device: (40 << 30, 64 << 30))
    monkeypatch.setattr(torch, "npu", module, raising=False)
    fields = {"/proc/meminfo": {"MemAvailable": f"{40 << 20} kB"}}
    monkeypatch.setattr(memory, "_fields", fields.__getitem__)
    monkeypatch.setattr(memory, "_number", lambda path: None)
    assert free_memory(SimpleNamespace(type=type_), 2) == (40 << 30) / divided  # type: ignore[arg-type]


def test_a_limit_of_address_space_is_respected() -> None:
    """As `ulimit -v` sets it, for each process of its own."""
    limit = 64 << 30
    code = f"""
import resource, torch
from graph_gemma.runners.backends.memory import free_memory
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
before = free_memory(torch.device("cpu"), 4)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
print(before, free_memory(torch.device("cpu")), free_memory(torch.device("cpu"), 1000))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    before, alone, among_many = map(int, run.stdout.split())
    assert alone < 4 << 30
    assert among_many <= min(alone, before)
