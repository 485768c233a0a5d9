"""Collectives, executed by torch.distributed on the host.

torchair names a group by its tag and ranks ("tag=ptd:0;rank_list=0,1"), which GE replaces by HCCL's communicator; here
it is the process group of those ranks. Sums of 16-bit values are accumulated in fp32 and rounded once; HCCL's own
order and rounding of partial sums are its choice. Source: prototypes in hcom_ops.h; torchair's hcom_utils.
"""

from __future__ import annotations

import re

import torch
import torch.distributed as dist
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.checks import HALVES, require, require_dtype, require_value
from graph_gemma.runners.backends.ascend.interpreter.ops.matmul import mat_mul
from graph_gemma.runners.backends.ascend.interpreter.registry import ge_op

_AS_X1 = 28  # GE's number of an undefined dtype
_FUSION = ("fusion", "fusion_id")  # which collectives travel together
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@ge_op("HcomAllReduce", ignored=_FUSION)
def hcom_all_reduce(x: Tensor, *, reduction: str, group: str) -> Tensor:
    """The sum, maximum or minimum of x over the ranks of `group`."""
    wide = _widened(x)
    dist.all_reduce(wide, _reduction(reduction), group=process_group(group))
    return wide.to(x.dtype)


@ge_op("MatmulAllReduce")
def matmul_all_reduce(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x3: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    comm_quant_scale_1: Tensor | None = None,
    comm_quant_scale_2: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    comm_turn: int = 0,
    antiquant_group_size: int = 0,
    group_size: int = 0,
    y_dtype: int = _AS_X1,
    comm_quant_mode: int = 0,
    comm_mode: str = "ai_cpu",
) -> Tensor:
    """The sum over the ranks of x1 [m, k] @ x2 [k, n], or x2 stored [n, k] with is_trans_b, in 16 bit.

    Each rank's product is rounded to 16 bit, as it travels. Source: prototype; torch_npu's document of
    npu_mm_all_reduce_base, which allows neither a transposed x1 nor another reduction, comm_turn or, on the A2,
    comm_mode.
    """
    unused = [bias, x3, antiquant_scale, antiquant_offset, dequant_scale, pertoken_scale]
    unused += [comm_quant_scale_1, comm_quant_scale_2]
    require(all(tensor is None for tensor in unused), "MatmulAllReduce with a bias, scales or a summand")
    require(not antiquant_group_size and not group_size and not comm_quant_mode, "MatmulAllReduce of quantized inputs")
    require(reduce_op == "sum" and not is_trans_a and y_dtype == _AS_X1, "MatmulAllReduce other than a sum of products")
    require_value("comm_turn", comm_turn, 0)
    require_value("comm_mode", comm_mode, "ai_cpu")
    require_dtype("x1", x1, *HALVES)
    require(x1.dim() == 2 and x2.dim() == 2, f"MatmulAllReduce of ranks {x1.dim()} and {x2.dim()}")
    return hcom_all_reduce(mat_mul(x1, x2, transpose_x2=is_trans_b), reduction=reduce_op, group=group)


@ge_op("HcomAllGather", ignored=_FUSION)
def hcom_all_gather(x: Tensor, *, rank_size: int, group: str) -> Tensor:
    """The ranks' x, joined along the first dimension in the order of the ranks."""
    result = torch.empty((rank_size * x.shape[0], *x.shape[1:]), dtype=x.dtype)
    dist.all_gather_into_tensor(result, x.contiguous(), group=process_group(group))
    return result


@ge_op("HcomReduceScatter", ignored=_FUSION)
def hcom_reduce_scatter(x: Tensor, *, reduction: str, rank_size: int, group: str) -> Tensor:
    """The ranks' x reduced; each rank keeps its part of the first dimension."""
    require(x.shape[0] % rank_size == 0, f"size {x.shape[0]} over {rank_size} ranks")
    pg = process_group(group)
    wide = _widened(x)
    dist.all_reduce(wide, _reduction(reduction), group=pg)
    return wide.chunk(rank_size)[dist.get_rank(pg)].to(x.dtype)


@ge_op("HcomBroadcast", ignored=_FUSION)
def hcom_broadcast(x: list[Tensor], *, root_rank: int, group: str) -> Tensor:
    """x of rank `root_rank` (counted within the group) on every rank."""
    require(len(x) == 1, "a broadcast of several tensors")
    pg = process_group(group)
    result = x[0].clone(memory_format=torch.contiguous_format)
    dist.broadcast(result, dist.get_global_rank(pg, root_rank), group=pg)
    return result


def process_group(group: str) -> dist.ProcessGroup:
    """torch's process group for torchair's name of it; it must exist already.

    It is looked up each time: a reference kept here would let the group live on after destroy_process_group, and
    gloo's threads, still running when the process ends, would abort it.
    """
    match = re.fullmatch(r"tag=(.*);rank_list=([\d,]+)", group)
    if match is None:
        raise GeGraphError(f"group {group!r} is not of the form tag=...;rank_list=...")
    ranks = [int(rank) for rank in match[2].split(",")]
    for candidate in dist.distributed_c10d._world.pg_map:
        if dist.get_process_group_ranks(candidate) == ranks:
            return candidate
    raise GeGraphError(f"no process group of ranks {ranks} exists in this process")


def _widened(x: Tensor) -> Tensor:
    """A contiguous copy of x in which sums are not rounded."""
    return x.float() if x.dtype in HALVES else x.clone(memory_format=torch.contiguous_format)


def _reduction(name: str) -> dist.ReduceOp.RedOpType:
    if name not in _REDUCTIONS:
        raise GeGraphError(f"reduction {name!r}; the interpreter knows {', '.join(_REDUCTIONS)}")
    return _REDUCTIONS[name]
