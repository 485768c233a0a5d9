"""Formulas of GE ops, in float64: the interpreter and a device are checked against them.

Written from the op documents, one formula per op type that lowered graphs use, head by head and row by row where that
is the plainest way to say it. Nothing is rounded and nothing is fast; sums of integers are in int64. An int8 that
stands for a number is given as that number, unrounded: the op must give one of the nearest integers. Inputs and
attributes are named as in GE; floating-point inputs arrive as float64 tensors, integers as int64, and the attribute
``input_dtypes`` says what they were. Attributes that the graph leaves out have the prototype's default.
"""

from graph_gemma.runners.verification.oracle import basic as _basic  # fills the table
from graph_gemma.runners.verification.oracle import quant as _quant
from graph_gemma.runners.verification.oracle.kernels import attention, gelu, rms_norm, rotary
from graph_gemma.runners.verification.oracle.registry import FORMULAS
