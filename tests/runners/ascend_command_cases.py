"""runners/export.py, verify.py and inspect_graph.py over the stand-in: the script of all their cases."""

from __future__ import annotations

import export_cases
import inspect_cases
import verify_cases
from support.standin_cases import Cases

CASES = Cases({**export_cases.CASES, **verify_cases.CASES, **inspect_cases.CASES})

if __name__ == "__main__":
    CASES.main()
