"""Select the backend that the setting `backend` means on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.base import Backend, Check
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.backends.inductor import InductorBackend, cpp_compiler

NAMES = ("auto", "eager", "inductor", "torchair")


def select_backend(
    name: str,
    cache_dir: Path,
    soc: Chip | None = None,
    norm: str = "exact",
    dump_dir: Path | None = None,
    check: Check = "no",
) -> tuple[Backend, str]:
    """The backend for the setting `backend` and a sentence that says which one was taken and why.

    soc, norm, dump_dir, check: for torchair only, see AscendOptions; soc must be given then.
    auto takes inductor where it can compile (a CUDA GPU, or a C++ compiler), else eager. Raises UserError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in NAMES:
        raise UserError(f"backend: {name!r} is unknown; it must be one of {', '.join(NAMES)}.")
    if name == "torchair":
        # torch_npu is an extra; nothing else needs it.
        from graph_gemma.runners.backends.torchair import AscendOptions, TorchairBackend

        assert soc is not None
        torchair = TorchairBackend(AscendOptions(soc, norm, dump_dir, check), cache_dir)
        return torchair, torchair.description
    if name == "eager":
        return EagerBackend(device), f"eager on {device.type}"
    if name == "auto" and device.type == "cpu" and cpp_compiler() is None:
        return EagerBackend(device), "eager on cpu (no C++ compiler was found, so Inductor cannot be used)"
    return InductorBackend(device, cache_dir), f"inductor on {device.type}"
