"""Options of the test suite."""

import signal

import pytest

import graph_model  # noqa: F401 (before torch, which would load an installed torch_npu)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden graph dumps, then review the diff"
    )


def pytest_configure() -> None:
    # A shell starts what it puts in the background with Ctrl-C ignored, and programs that tests start inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
