"""Level 2 inside a run: the lowered graph against the graph that was lowered."""

from __future__ import annotations

from pathlib import Path

import checked_step_cases
import pytest
import torch
from checked_step_cases import CASES
from support.standin_cases import A2, run_cases

from graph_model.numerics import relative_difference

SCRIPT = Path(checked_step_cases.__file__)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_cases(SCRIPT, A2, tmp_path_factory.mktemp("checked"))


@pytest.mark.parametrize("name", CASES.params(slow=False))
def test_on_the_standin(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("name", CASES.params(slow=True))
def test_slowly_on_the_standin(name: str, tmp_path: Path) -> None:
    outcome = run_cases(SCRIPT, CASES[name].soc, tmp_path, name)[name]
    assert not outcome, outcome


def test_differences_of_what_is_not_finite() -> None:
    a = torch.tensor([1.0, torch.inf, torch.nan])
    assert relative_difference(a, a.clone()) == 0
    assert relative_difference(a, torch.tensor([1.0, torch.inf, 0.0])) == float("inf")
    assert relative_difference(a, torch.tensor([1.0, -torch.inf, torch.nan])) == float("inf")
    assert relative_difference(torch.zeros(2), torch.tensor([0.0, 0.5])) == 0.5
