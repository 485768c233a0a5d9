"""Making the graph of a full-size step takes at most 2.5 times as long as lowering it written by hand."""

from __future__ import annotations

from pathlib import Path

import compile_time_cases
import pytest
from compile_time_cases import CASES
from support.standin_cases import run_cases

SCRIPT = Path(compile_time_cases.__file__)


@pytest.mark.parametrize("name", [*CASES.params(slow=False), *CASES.params(slow=True)])
def test_on_the_standin(name: str, tmp_path: Path) -> None:
    outcome = run_cases(SCRIPT, CASES[name].soc, tmp_path, name)[name]
    assert not outcome, outcome
