"""Weights as expressions over the tensors of a checkpoint."""

from graph_model.weights.expressions import (
    CausalMask,
    CheckpointTensor,
    Concat,
    Constant,
    Expression,
    InverseFrequencies,
    OnePlus,
    Rounded,
    RowwiseExpression,
    Slice,
    WeightPlan,
    evaluate,
    from_json,
    row_blocks,
    rows_of,
    to_json,
)
from graph_model.weights.read import Part, Read, take_part

__all__ = [
    "CausalMask",
    "CheckpointTensor",
    "Concat",
    "Constant",
    "Expression",
    "InverseFrequencies",
    "OnePlus",
    "Part",
    "Read",
    "Rounded",
    "RowwiseExpression",
    "Slice",
    "WeightPlan",
    "evaluate",
    "from_json",
    "row_blocks",
    "rows_of",
    "take_part",
    "to_json",
]
