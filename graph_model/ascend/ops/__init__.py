"""The GE ops that passes select, a family per file: schema, converter, CPU kernel, limits and work of each.

Importing this package defines the ops of namespace `ascend` in torch.
"""

from graph_gemma.graph_model.ascend.ops import (
    attention,
    cache_write,
    collective,
    geglu,
    linear,
    norm,
    quant_matmul,
    quantize,
    rotary,
)
from graph_gemma.graph_model.ascend.ops.op import AscendOp

_FAMILIES = (attention, cache_write, collective, geglu, linear, norm, quant_matmul, quantize, rotary)
OPS: tuple[AscendOp, ...] = tuple(op for family in _FAMILIES for op in family.OPS)
BY_GE_TYPE: dict[str, AscendOp] = {op.ge_type: op for op in OPS}
BY_TORCH_NAME: dict[str, AscendOp] = {op.torch_name: op for op in OPS}
for _op in OPS:
    _op.define()
