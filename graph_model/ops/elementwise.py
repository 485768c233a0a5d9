"""Rotary embedding, the gated activation and the soft-cap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op


@canonical_op("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor")
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: element i is rotated with element i + head_dim / 2.

    x [batch, tokens, heads, head_dim]; cos, sin [batch, tokens, 1, head_dim] of x's dtype, both halves equal.
    Su et al., arXiv:2104.09864; halves instead of pairs as in transformers' apply_rotary_pos_emb.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@canonical_op("gelu_and_mul(Tensor gate, Tensor up) -> Tensor")
def gelu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU, gelu rounded to the inputs' dtype. Shazeer, arXiv:2002.05202."""
    return F.gelu(gate, approximate="tanh") * up


@canonical_op("softcap(Tensor x, float cap) -> Tensor")
def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), each step rounded to x's dtype: what lies between -cap and cap. arXiv:2408.00118."""
    return torch.tanh(x / cap) * cap
