"""README: every command in it is run by CI, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_shell_block_is_run_by_ci() -> None:
    blocks = README.count("```bash")
    named = re.findall(r"<!-- command: (\w+) -->\n```bash\n", README)
    assert blocks == len(named)
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"\$\(readme_command (\w+)\)", ci) == ["run", "examples", "test", "ascend"]
    assert sorted(named) == ["ascend", "examples", "run", "test"]


def test_the_files_it_names_exist() -> None:
    for name in re.findall(r"\]\((docs/[\w.]+)\)", README) + re.findall(
        r"`((?:graph_model|passes|runners|conf)/[\w./]*)`", README
    ):
        assert (ROOT / name).exists(), name
