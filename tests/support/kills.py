"""A process that is killed at each of its calls to the system, one after the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def kill_at_each_call(
    action: Callable[[], object], prepare: Callable[[], object], check: Callable[[int], object]
) -> int:
    """For n = 1, 2, ...: `prepare`, run `action` in a child that is killed before its n-th call, then `check(n)`.

    Calls are those on files and directories that Python tells its audit hooks of. Ends with the first n that the action
    does not come to; returns it.
    """
    n = 0
    while True:
        n += 1
        prepare()
        child = os.fork()
        if child == 0:
            _die_at(n)
            try:
                action()
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"call {n}: the action itself failed"
        check(n)
        if status == 0:
            return n


def _die_at(n: int) -> None:
    calls = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal calls
        if event == "open" or (event.startswith("os.") and event != "os.kill"):
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
