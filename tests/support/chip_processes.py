"""A pytest plugin that runs the tests of a chip in a process which has loaded torch_npu for that chip.

torch_npu changes torch, and keeps the chip's name for the life of a process. So a test with the mark `chip` is
collected here, run by another pytest, one per chip, and reported as if it had run here.
`pytest --chip=atlas_800i_a2 --pdb FILE` runs the tests of one chip in the process itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

A2, DUO = "atlas_800i_a2", "atlas_300i_duo"
ROOT = Path(__file__).parents[2]
on_each_chip = pytest.mark.parametrize("soc", [pytest.param(soc, marks=pytest.mark.chip) for soc in (A2, DUO)])


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chips", "tests that need torch_npu")
    group.addoption("--chip", choices=(A2, DUO), help="run the tests of this chip alone, in this process")
    group.addoption("--chip-orders", type=int, help="used between the processes: the descriptor that names tests")


def chip_of(item: pytest.Item) -> str | None:
    """The chip whose process a test needs: what its mark says, or its parameter `soc`; None: any process will do."""
    mark = item.get_closest_marker("chip")
    if mark is None or mark.args:
        return str(mark.args[0]) if mark else None
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("soc") if callspec else None


def what_is_missing() -> str:
    """Why tests with the mark `ascend` cannot run; "" if they can."""
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    return "" if any(map(shutil.which, ("cc", "gcc", "clang"))) else "there is no C compiler"


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing, wanted = what_is_missing(), config.getoption("--chip")
    for item in items:
        if chip_of(item):
            item.add_marker("ascend")
        if missing and item.get_closest_marker("ascend"):
            item.add_marker(pytest.mark.skip(reason=missing))
    # The tests of a file that share a process follow each other, so that fixtures of the file are made once.
    files = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], chip_of(item) or ""))
    if wanted:
        config.hook.pytest_deselected(items=[item for item in items if chip_of(item) != wanted])
        items[:] = [item for item in items if chip_of(item) == wanted]


def pytest_configure(config: pytest.Config) -> None:
    orders = config.getoption("--chip-orders")
    if orders is not None:
        config.pluginmanager.register(_Serving(config, Connection(orders)))
    elif config.getoption("--chip") is None and not what_is_missing():
        config.pluginmanager.register(_Delegating(config))


def pytest_sessionstart(session: pytest.Session) -> None:
    chip = session.config.getoption("--chip")
    if chip and not session.config.option.collectonly:
        load_torch_npu(chip)


def load_torch_npu(chip: str) -> None:
    import torch

    from graph_gemma.graph_model.chips.registry import find_soc
    from graph_gemma.runners.backends.ascend import standin
    from graph_gemma.runners.backends.ascend.register import register_kernels
    from graph_gemma.runners.settings.model_settings import cache_directory

    torch.set_num_threads(1)
    assert standin.load(find_soc(chip), cache_directory(None) / "cann_standin") == standin.is_standin()
    register_kernels()


class _Delegating:
    """Lets the chips' processes, started when they are first needed, run the tests that have the mark `chip`."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.processes: dict[str, _ChipProcess] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        chip = chip_of(item)
        if chip is None:
            return None
        if chip not in self.processes:
            files = dict.fromkeys(str(other.path) for other in item.session.items if chip_of(other) == chip)
            self.processes[chip] = _ChipProcess(self.config, chip, list(files))
        following = nextitem.nodeid if nextitem is not None and chip_of(nextitem) == chip else None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            for report in self.processes[chip].run(item.nodeid, following):
                item.ihook.pytest_runtest_logreport(report=report)
        except (EOFError, OSError):
            message = f"the process of {chip} ended in this test: {self.processes.pop(chip).end()}"
            item.ihook.pytest_runtest_logreport(
                report=pytest.TestReport(item.nodeid, item.location, {}, "failed", message, "call")
            )
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # What an earlier test left set up for this one may not be what the next test of this process needs.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_unconfigure(self) -> None:
        for process in self.processes.values():
            process.end()


class _ChipProcess:
    """A pytest that has collected the files of a chip's tests and runs those that it is told to."""

    def __init__(self, config: pytest.Config, chip: str, files: list[str]) -> None:
        self.config = config
        self.orders, theirs = Pipe()
        self.printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until `end`)
        without = ["-p", "no:cacheprovider", "-p", "no:logging"]  # torch's trace of each lowering is no log to keep
        options = [f"--chip={chip}", f"--chip-orders={theirs.fileno()}", "-m", "", *without]
        options += [f"--tb={config.option.tbstyle}", f"--verbosity={config.option.verbose}"]
        options += [f"--capture={config.option.capture}"] + ["--update-golden"] * config.option.update_golden
        shown = config.option.capture == "no"
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=config.rootpath,
            env={**environment, "OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdout=None if shown else self.printed,
            stderr=None if shown else subprocess.STDOUT,
        )
        theirs.close()

    def run(self, test: str, following: str | None) -> Iterator[pytest.TestReport]:
        """Reports of a test's phases. following: the test that comes next, if this process will run it.

        Raises EOFError or OSError if the process has ended.
        """
        self.orders.send((test, following))
        while (data := self.orders.recv()) is not None:
            yield self.config.hook.pytest_report_from_serializable(config=self.config, data=data)

    def end(self) -> str:
        """Let the process finish, and return its status and what it printed."""
        self.orders.close()
        status = self.process.wait()
        with self.printed:
            self.printed.seek(0)
            return f"status {status}\n{self.printed.read()}"


class _Serving:
    """In a chip's process: runs the tests that are named to it, and sends their reports."""

    def __init__(self, config: pytest.Config, orders: Connection) -> None:
        self.config = config
        self.orders: Any = orders

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        while True:
            try:
                test, following = self.orders.recv()
            except EOFError:
                return True
            self.config.hook.pytest_runtest_protocol(item=items[test], nextitem=items.get(following))
            self.orders.send(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.orders.send(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))
