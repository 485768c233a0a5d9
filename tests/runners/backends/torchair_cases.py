"""The torchair backend over the stand-in: the script of all its cases."""

from __future__ import annotations

import sys
from pathlib import Path

import budget_cases
import cache_cases
import compile_time_cases
import demo_cases
import full_size_cases
import graph_fault_cases
import level_2_cases
import listing_cases
import norm_error_cases
import rank_cases
import token_cases
from support.standin_cases import A2, DUO, Case, Cases

PARTS = (
    level_2_cases,
    token_cases,
    demo_cases,
    full_size_cases,
    listing_cases,
    norm_error_cases,
    rank_cases,
    budget_cases,
    cache_cases,
    compile_time_cases,
    graph_fault_cases,
)
CASES = Cases({name: case for part in PARTS for name, case in part.CASES.items()})
RESULTS = Path(sys.argv[3]).parent if __name__ == "__main__" else Path()

for _soc in (A2, DUO):
    CASES[f"listings_of_{_soc}"] = Case(
        _soc, lambda folder, soc=_soc: listing_cases.write_listings(soc, RESULTS / "listings")
    )
    CASES[f"answers_of_{_soc}"] = Case(
        _soc, lambda folder, soc=_soc: demo_cases.write_answers(soc, RESULTS / f"answers-{soc}.json", folder)
    )

if __name__ == "__main__":
    CASES.main()
