"""GE ops by their definitions, in float64: what the interpreter and a device are held to.

Written from the op documents, one formula per op type that lowered graphs use, head by head and row by row where that
is the plainest way to say it. Nothing is rounded and nothing is fast. Inputs and attributes are named as in GE;
floating-point inputs arrive as float64 tensors, integers as int64. Attributes that the graph leaves out have the
prototype's default.
"""

from graph_model.ascend.formulas import basic as _basic  # noqa: F401  (fills the table)
from graph_model.ascend.formulas.kernels import attention, gelu, rms_norm, rotary
from graph_model.ascend.formulas.registry import FORMULAS

__all__ = ["FORMULAS", "attention", "gelu", "rms_norm", "rotary"]
