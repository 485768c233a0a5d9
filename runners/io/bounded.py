"""Run a function of untrusted input within bounds of time, memory and size: in a child process that is ended."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

SECONDS = 10.0  # of the run
MEMORY = 1 << 30  # bytes more than this process has
SIZE = 1 << 24  # bytes of the text


class OutOfBounds(Exception):
    """The function took too long, too much memory, or gave too much."""


def run_bounded(function: Callable[[], str]) -> str:
    """The text that `function` returns. It runs in a copy of this process, so what it changes is lost.

    Raises OutOfBounds, or a ValueError with the message of what the function raised.
    """
    source, target = os.pipe()
    child = os.fork()
    if not child:
        _run(function, target)
    os.close(target)
    try:
        found = _read(source)
    finally:
        os.close(source)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not found:
        raise OutOfBounds(f"it ended without a result; it may take at most {MEMORY >> 30} GB of memory")
    if found[:1] == b"e":
        raise ValueError(found[1:].decode(errors="replace"))
    return found[1:].decode("utf-8", "surrogatepass")


def _read(source: int) -> bytes:
    deadline, found = time.monotonic() + SECONDS, bytearray()
    while True:
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise OutOfBounds(f"it takes longer than {SECONDS:g} seconds")
        part = os.read(source, 1 << 20)
        if not part:
            return bytes(found)
        found += part
        if len(found) > SIZE:
            raise OutOfBounds(f"its text is longer than {SIZE} bytes")


def _run(function: Callable[[], str], target: int) -> NoReturn:
    """In the child: nothing of the parent's is ended or flushed, whatever happens."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            result = b"r" + function().encode("utf-8", "surrogatepass")
        except MemoryError:
            result = b"eit takes more than the memory that it may"
        except BaseException as error:
            result = b"e" + f"{type(error).__name__}: {error}".encode(errors="replace")[:10_000]
        while result:
            result = result[os.write(target, result) :]
    finally:
        os._exit(0)
