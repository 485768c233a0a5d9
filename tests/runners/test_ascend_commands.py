"""runners/export.py, verify.py, inspect_graph.py, evaluate.py and compare.py over the stand-in."""

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


@pytest.mark.parametrize("name", CASES.params(slow=True))
def test_slowly_on_the_standin(name: str, tmp_path: Path) -> None:
    outcome = run_cases(SCRIPT, CASES[name].soc, tmp_path, name)[name]
    assert not outcome, outcome
