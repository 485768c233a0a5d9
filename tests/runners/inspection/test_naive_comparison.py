"""inspect_graph.py compare=naive: what it refuses. What it measures: test_ascend_budgets.py."""

from __future__ import annotations

import pytest
from support.cli import run_command

from graph_gemma.runners.inspect_graph import inspect_graph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare=twice"], "compare is 'twice'; it must be naive, or null"),
        (["compare=naive", "graph=dump"], "graph has no meaning with compare=naive"),
        (["compare=naive", "page=page.html"], "page has no meaning with compare=naive"),
        (["compare=naive", "picture=plots.svg"], "picture has no meaning with compare=naive"),
        (["compare=naive", "backend=eager"], "backend is eager"),
        (["compare=naive", "quant=w8a16"], "Leave quant out"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_command(inspect_graph, "inspect_graph", arguments, capsys, monkeypatch)
    assert found.status == 2
    assert message in found.stderr
