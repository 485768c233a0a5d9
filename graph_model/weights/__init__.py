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
    Slice,
    WeightPlan,
    evaluate,
    from_json,
    rows_of,
    to_json,
)
from graph_model.weights.read import Part, Read

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
    "Slice",
    "WeightPlan",
    "evaluate",
    "from_json",
    "rows_of",
    "to_json",
]
