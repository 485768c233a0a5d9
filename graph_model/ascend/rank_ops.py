"""Ops that only graphs of several ranks have, each cut out into a graph of its own.

They are those whose results ranks sum before these are rounded; collectives, which need several devices, are not
among them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from graph_model.ascend.engine import compiler_config
from graph_model.ascend.lower import LoweredStep, current_target, lower_module
from graph_model.ascend.single_ops import SingleOp, cut_out_ops
from graph_model.ascend.soc import Soc
from graph_model.config import GemmaConfig

_ROWS = 8


class _Shares(torch.nn.Module):
    """A row-parallel layer's share in float32; and one in integers, with what scales their sum."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        one: Tensor,
        zeros: Tensor,
        q: Tensor,
        int8: Tensor,
        scale_of_integers: Tensor,
        bias: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, ...]:
        ascend = torch.ops.ascend
        total = ascend.quant_matmul(q, int8, scale_of_integers, bias, None, torch.int32)
        return ascend.gemm(x, weight, one, zeros), total, ascend.dequantise(total, scale, x.dtype)


def cut_out_rank_ops(config: GemmaConfig, dtype: torch.dtype, soc: Soc, ranks: int = 2) -> dict[str, SingleOp]:
    """The ops of the down projection's share of one of `ranks`, on random numbers; none where the chip has none.

    torch_npu must be loaded for `soc`.
    """
    if not (soc.int32_products and soc.float32_products):
        return {}
    generator = torch.Generator().manual_seed(0)

    def int8(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)

    size, out = config.intermediate_size // ranks, config.hidden_size
    x, weight = (torch.randn(rows, size, generator=generator).to(dtype) for rows in (_ROWS, out))
    zeros, scale = torch.zeros(_ROWS, out), torch.rand(out, generator=generator) * 1e-4 + 1e-6
    bias = torch.randint(-1000, 1000, (out,), generator=generator, dtype=torch.int32)
    shares = [x, weight, torch.ones(1, dtype=dtype), zeros]
    arguments = [*shares, int8(_ROWS, size), int8(out, size), torch.ones(1), bias, scale]
    with FakeTensorMode():
        fakes = [torch.empty(given.shape, dtype=given.dtype, device="npu") for given in arguments]
        concrete, module = lower_module(torch.fx.symbolic_trace(_Shares()), fakes, compiler_config())
    return cut_out_ops(LoweredStep(concrete, module, {}, current_target()), arguments)
