"""Small modules compiled by torchair over the stand-in and compared with plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graph_gemma.runners.backends.ascend.recording import LoadedGraph, recorded_graphs


def compiled(function: Callable[..., Any], *, view_optimize: bool = False) -> Callable[..., Any]:
    import torchair

    config = torchair.CompilerConfig()
    config.experimental_config.enable_view_optimize = view_optimize
    config.experimental_config.frozen_parameter = True
    return torch.compile(
        function, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False, fullgraph=True
    )


def npu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to("npu") for tensor in tensors]


def compare(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0) -> LoadedGraph:
    """The lowered function's outputs equal the function's own, on the CPU."""
    with recorded_graphs() as loaded:
        got = compiled(function)(*npu(*inputs))
    expected = function(*inputs)
    pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for i, (a, b) in enumerate(pairs):
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, msg=lambda m, i=i: f"output {i}: {m}")
    return loaded[0]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.double()
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight.double()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    """By the definition, in float64: q [tokens, heads, D], k and v [keys, kv_heads, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("tnd,knd->ntk", q.double(), k) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("ntk,knd->tnd", scores.softmax(-1), v)
