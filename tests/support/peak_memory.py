"""The most memory that this process held while a block of code ran."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType


class PeakMemory:
    """bytes: the highest resident size within the block, all of the process counted. Linux: the kernel's own mark is
    reset when the block begins (proc(5), clear_refs)."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        self.bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
