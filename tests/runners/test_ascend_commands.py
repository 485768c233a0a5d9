"""Ops of lowered graphs, each alone, and runners/export.py over the stand-in."""

from __future__ import annotations

from pathlib import Path

import ascend_command_cases
import pytest
from ascend_command_cases import CASES
from support.standin_cases import A2, run_cases

SCRIPT = Path(ascend_command_cases.__file__)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_cases(SCRIPT, A2, tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("name", CASES.params(slow=False))
def test_on_the_standin(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]
