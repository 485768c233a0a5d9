"""Machine and versions of a benchmark: the columns at the end of every file of results."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import numpy
import torch

from graph_gemma.runners.benchmarking.request import Request


def environment(request: Request) -> dict[str, str]:
    """Column -> text, the same in every row of a run."""
    model = request.model
    quantization = model.quantization
    return {
        "dtype": model.dtype,
        "Quantization": (quantization.scheme if quantization is not None else None) or "none",
        "KV cache": "int8" if quantization is not None and quantization.kv8 else model.dtype,
        "World size": str(model.world_size),
        "Threads": str(torch.get_num_threads()),
        "Machine": machine(),
        "Date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}",
    }


def machine() -> str:
    """The processor, how many of its cores this process may use, and the GPU if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor()}, {cores} cores"
    return f"{text}; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def _processor() -> str:
    """The processor's name, and of an x86 its widest instructions, which the name of a virtual one may not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    wide = [name for name in ("amx_int8", "avx512_bf16", "avx512f", "avx2") if name in flags][:2]
    return " ".join([fields.get("model name", platform.machine()), *wide])
