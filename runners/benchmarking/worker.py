"""Worker: run an object in a new process, so that its memory is measured alone and a crash ends only itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from graph_gemma.graph_model.errors import UserError

Result = TypeVar("Result")
_PATIENCE_S = 5.0  # from being told to end to SIGTERM, from there to SIGKILL


class WorkerError(Exception):
    """A call in a worker failed, or its process ended. The message says why in one line."""


@dataclass(frozen=True)
class _Failure:
    text: str


class Worker:
    """Makes an object in a new process and calls its methods there, one at a time; otherwise it sleeps.

    start: picklable; makes the object. threads: what torch computes with there. What it prints goes to stderr.
    Raises WorkerError, and UserError where the object raised one.
    """

    def __init__(self, name: str, start: Callable[[], Any], threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start, threads), name=name)
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the object."""
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._ended() from None
        return self._receive()

    def get(self, attribute: str) -> Any:
        """The value of an attribute of the object."""
        return self.call("__getattribute__", attribute)

    def close(self) -> None:
        """End the process; the object's `close` is called there if it has one."""
        self._connection.close()
        for end in (lambda: None, self._process.terminate, self._process.kill):
            end()
            self._process.join(_PATIENCE_S)
            if self._process.exitcode is not None:
                return

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            result = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(result, _Failure):
            raise WorkerError(result.text)
        if isinstance(result, UserError):
            raise result
        return result

    def _ended(self) -> WorkerError:
        self._process.join(_PATIENCE_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += " (the system does that when memory runs out)"
        else:
            how = f"ended with status {code}"
        return WorkerError(f"the process {how}")


def in_new_process(name: str, function: Callable[[], Result], threads: int | None = None) -> Result:
    """The result of `function`, called in a process of its own. Raises as Worker does."""
    with Worker(name, _Nothing, threads) as worker:
        result: Result = worker.call("call", function)
        return result


class _Nothing:
    def call(self, function: Callable[[], Any]) -> Any:
        return function()


def _serve(connection: Any, start: Callable[[], Any], threads: int | None) -> None:
    """The worker's process: until the other end of the pipe is closed."""
    # Ctrl-C reaches every process of the terminal; the one that it is meant for ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.dup2(2, 1)
    made: list[Any] = []

    def begin() -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        made.append(start())

    try:
        _reply(connection, begin)
        while made:
            method, arguments = connection.recv()
            _reply(connection, lambda: getattr(made[0], method)(*arguments))  # noqa: B023 (called at once)
    except (EOFError, OSError):
        pass  # the other end was closed
    finally:
        if made and hasattr(made[0], "close"):
            made[0].close()


def _reply(connection: Any, call: Callable[[], Any]) -> None:
    try:
        result = call()
    except UserError as error:
        result = error
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        result = _Failure(f"{type(error).__name__}: {lines[0][:300]}")
    connection.send(result)
