"""Collectives over all ranks, as torch's functional ones: Inductor and torchair know how to lower them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from graph_gemma.graph_model.ops.registry import canonical_op

_c10d = torch.ops._c10d_functional
_UNINITIALIZED = "0"  # the name that torch gives the first group: for graphs made where there is none yet


@canonical_op("all_reduce(Tensor x) -> Tensor")
def all_reduce(x: Tensor) -> Tensor:
    """The sum of the ranks' x, in x's dtype."""
    return _c10d.wait_tensor(_c10d.all_reduce(x.contiguous(), "sum", _group()))


@canonical_op("all_gather(Tensor x, int world_size) -> Tensor")
def all_gather(x: Tensor, world_size: int) -> Tensor:
    """The ranks' x joined along the last dimension, in the order of the ranks: [..., n] -> [..., world_size * n]."""
    stacked = stack_ranks(x, world_size)
    return stacked.movedim(0, -2).flatten(-2)


def stack_ranks(x: Tensor, world_size: int) -> Tensor:
    """The ranks' x along a new first dimension: [...] -> [world_size, ...]."""
    joined = _c10d.wait_tensor(_c10d.all_gather_into_tensor(x.contiguous(), world_size, _group()))
    return joined.view(world_size, *x.shape)


def _group() -> str:
    return dist.distributed_c10d._get_default_group().group_name if dist.is_initialized() else _UNINITIALIZED
