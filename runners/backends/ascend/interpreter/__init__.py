"""The GE interpreter: executes a GE graph on the CPU, one small torch function per GE op type.

It models the engine's INF_NAN overflow mode (the default of the Atlas A2 and of torch_npu there): a 16-bit result
beyond the largest number is infinite, nothing saturates. Conversions to integers follow the Cast op's own rule.

It executes the graph as it was handed to the engine. Formats that the engine chooses, fusions that it makes and the
order of the sums inside its kernels are not visible here; see docs/ascend.md.
"""

from graph_gemma.runners.backends.ascend.interpreter.program import Program
