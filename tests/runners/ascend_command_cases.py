"""runners/export.py, verify.py, inspect_graph.py, evaluate.py, benchmark.py, compile_matrix.py and
compare.py over the stand-in: the script of all their cases."""

from __future__ import annotations

import accuracy_cases
import export_cases
import export_round_trip_cases
import figure_cases
import inspect_cases
import torchair_export_cases
import verify_cases
from support.standin_cases import Cases

PARTS = (
    accuracy_cases,
    export_cases,
    export_round_trip_cases,
    figure_cases,
    inspect_cases,
    torchair_export_cases,
    verify_cases,
)
CASES = Cases({name: case for part in PARTS for name, case in part.CASES.items()})

if __name__ == "__main__":
    CASES.main()
