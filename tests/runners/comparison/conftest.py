"""Both sides of a comparison in the test's own process: starting one takes seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from graph_gemma.runners.comparison import side


@pytest.fixture
def sides_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*arguments: Any) -> Any:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            return side.compute(*arguments)
        finally:
            GlobalHydra.instance().hydra = outer

    monkeypatch.setattr(side, "run_side", here)
