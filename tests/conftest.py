"""Options and shared fixtures of the test suite."""

import signal
from collections.abc import Iterator

import pytest

import graph_model  # noqa: F401 (before torch, which would load an installed torch_npu)

from support.token_rule import Excuses  # isort: skip

pytest_plugins = ["support.chip_processes", "pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden graph dumps, then review the diff"
    )


def pytest_configure() -> None:
    # A shell starts what it puts in the background with Ctrl-C ignored, and programs that tests start inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def excuses() -> Iterator[Excuses]:
    """Counts what the module's tests hold to the token rule; at the end the rule's share is checked."""
    found = Excuses()
    yield found
    found.check()
