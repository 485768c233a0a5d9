"""Options and shared fixtures of the test suite."""

import signal
from collections.abc import Iterator

import pytest

import graph_gemma.graph_model  # noqa: F401 (before torch, which would load an installed torch_npu)

from support.token_rule import TieCounter  # isort: skip

pytest_plugins = ["support.chip_processes", "pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden graph dumps, then review the diff"
    )


def pytest_configure() -> None:
    # A shell starts what it puts in the background with Ctrl-C ignored, and programs that tests start inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def ties() -> Iterator[TieCounter]:
    """Counts the tokens that the module's tests check by the token rule; at the end the share of ties is checked."""
    found = TieCounter()
    yield found
    found.check_share()
