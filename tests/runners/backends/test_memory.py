"""Memory of the device that a model runs on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from graph_model.tensor_parallel import Shard
from runners.backends.ascend import standin
from runners.backends.memory import free_memory, peak_memory
from runners.llm import sizes

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
    monkeypatch.setattr(sizes, "free_memory", lambda device: 40 << 30)
    shard = Shard(1, 2)
    assert sizes._memory_of_a_rank(SimpleNamespace(type=type_), shard) == (40 << 30) / divided  # type: ignore[arg-type]
