"""One function per GE op type, in files by family. Importing this package fills the registry.

Rounding. Inputs and outputs of 16-bit ops are 16-bit; what a function says about rounding is where the real kernel
rounds in between. Sums run in another order on the chip: results agree to the rounding of an accumulation, not
bit by bit. Sources: "ops-nn", "ops-transformer" and "ops-math" are the public CANN operator repositories; "prototype"
is the op's REG_OP declaration in CANN's op_proto headers; "converter" is torchair's FX-to-GE converter.
"""

from graph_gemma.runners.backends.ascend.interpreter.ops import (
    activation,
    attention,
    cache,
    collective,
    comparison,
    elementwise,
    indexing,
    matmul,
    norm,
    quant,
    reduction,
    shape,
)
