"""Free and peak memory of the host, the control group, or a device."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from graph_gemma.runners.backends.ascend import standin


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that each of the `processes` of a model can take on its `device`, which is its own.

    On the CPU, whose memory they share: what the system calls available, within the control group; but not more than
    the process's limit of address space (ulimit -v) leaves. The CANN stand-in's device lies in the host's memory.
    """
    if (accelerator := _accelerator(device)) is not None:
        return int(accelerator.mem_get_info(device)[0])
    available = int(_fields("/proc/meminfo")["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    shared = available if limit is None or used is None else min(available, limit - used)
    return max(0, min(shared // processes, _address_space_left()))


def _address_space_left() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - int(_fields("/proc/self/status")["VmSize"].split()[0]) * 1024


def peak_memory(device: torch.device) -> int:
    """The peak of this process's memory on `device`, in bytes."""
    if (accelerator := _accelerator(device)) is not None:
        return int(accelerator.max_memory_allocated(device))
    try:
        # Not getrusage: there a process starts with the peak of the one that started it.
        return int(_fields("/proc/self/status")["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def on_host(device: torch.device) -> bool:
    """Whether the device's memory is the host's, which all processes of the machine share."""
    return device.type == "cpu" or (device.type == "npu" and standin.is_standin())


def _accelerator(device: torch.device) -> Any:
    """torch's module for a device that has memory of its own, torch.cuda or torch.npu; None if it has none."""
    return None if on_host(device) else getattr(torch, device.type)


def _fields(path: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(path).read_text().splitlines())


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
