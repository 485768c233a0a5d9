"""Weights as expressions over the tensors of a checkpoint."""

from graph_gemma.graph_model.weights.expressions import (
    CausalMask,
    CheckpointTensor,
    Concat,
    Constant,
    Expression,
    InverseFrequencies,
    OnePlus,
    PaddingMask,
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
from graph_gemma.graph_model.weights.read import Part, Read, take_part
