"""Small modules and single ops over the stand-in: the script of all their cases."""

from __future__ import annotations

import lowered_attention_cases
import lowered_op_cases
import single_op_cases
from support.standin_cases import Cases

CASES = Cases({**lowered_attention_cases.CASES, **lowered_op_cases.CASES, **single_op_cases.CASES})

if __name__ == "__main__":
    CASES.main()
