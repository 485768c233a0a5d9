"""The checkout that is tested: its folder, and the path on which a process finds the package graph_gemma in it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def import_path(root: Path = ROOT, *more: Path | str) -> str:
    """PYTHONPATH for a process that runs the code of the checkout in `root`."""
    return os.pathsep.join(map(str, (root / "tests" / "checkout", *more)))
