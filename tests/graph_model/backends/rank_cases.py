"""What a rank of several does on the chip: its device."""

from __future__ import annotations

from pathlib import Path

import graph_model  # noqa: F401  (before torch)

import pytest  # isort: skip
import torch  # isort: skip
from support.standin_cases import A2, Cases

from graph_model.ascend.soc import find_soc
from graph_model.backends.torchair import AscendOptions, TorchairBackend

CASES = Cases()


@CASES.add(A2)
def a_backend_runs_on_the_device_that_the_rank_has_taken(folder: Path) -> None:
    options = AscendOptions(find_soc(A2), "exact")
    assert TorchairBackend(options, folder).device == torch.device("npu", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.get_device_module("npu"), "current_device", lambda: 3)
        assert TorchairBackend(options, folder).device == torch.device("npu", 3)
