"""What the chip's ops compute, on CPU tensors: a graph with selected kernels then runs anywhere, for comparison.

Written from the op documents, in plain torch, independently of the GE interpreter: a lowered graph that the interpreter
executes is compared with the graph that was lowered, which these kernels execute. Sums are in float32 and results are
rounded once; where the chip rounds in between, the interpreter does, and the comparison's bound covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graph_model.quantization.int8 import decode_scale

_KERNELS: dict[str, Callable[..., Any]] = {}
_LIBRARIES: list[torch.library.Library] = []


def register_kernels() -> None:
    """Give the ops CPU kernels; torch_npu and torchair must be loaded. A second call changes nothing."""
    if _LIBRARIES:
        return
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("npu", "air", "ascend")}
    _LIBRARIES.extend(libraries.values())
    for name, kernel in _KERNELS.items():
        namespace, op = name.split("::")
        # torchair gives its own op a CPU kernel that only raises.
        libraries[namespace].impl(op, kernel, "CPU", allow_override=namespace == "air")


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        _KERNELS[name] = kernel
        return kernel

    return register


@_kernel("ascend::linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@_kernel("ascend::gemm")
def _gemm(x: Tensor, weight: Tensor, one: Tensor, total: Tensor) -> Tensor:
    assert one.item() == 1
    return F.linear(x.float(), weight.float()) + total


@_kernel("ascend::matmul_all_reduce")
def _matmul_all_reduce(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.gemma.all_reduce(F.linear(x, weight))


@_kernel("ascend::batch_matmul")
def _batch_matmul(x1: Tensor, x2: Tensor, adj_x2: bool = False) -> Tensor:
    return torch.matmul(x1, x2.transpose(-1, -2) if adj_x2 else x2)


@_kernel("ascend::gemma_rms_norm")
def _gemma_rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-6) -> Tensor:
    return (_normalized(x, epsilon) * (1.0 + weight.float())).to(x.dtype)


@_kernel("npu::npu_rms_norm")
def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    x32 = x.float()
    rstd = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (_normalized(x, epsilon) * gamma.float()).to(x.dtype), rstd


@_kernel("npu::npu_add_rms_norm")
def _add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    rstd = torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return _normalized(total, epsilon).to(total.dtype) * gamma, rstd, total


@_kernel("npu::npu_quantize")
def _quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: object, axis: int = 1, div_mode: bool = True
) -> Tensor:
    assert div_mode
    scaled = x.float() / scales
    return _int8(scaled if zero_points is None else scaled + zero_points.float())


@_kernel("npu::npu_dynamic_quant")
def _dynamic_quant(x: Tensor, **unused: None) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax(-1) / 127.0
    return _int8(x.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]), scale


@_kernel("npu::npu_add_rms_norm_quant")
def _add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor,
    *,
    epsilon: float = 1e-6,
    **unused: None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert scales1.numel() == 1
    total = x1 + x2
    y = _int8(_normalized(total, epsilon) * gamma.float() / scales1 + zero_points1.float())
    return y, torch.zeros_like(y), total


@_kernel("npu::npu_add_rms_norm_dynamic_quant")
def _add_rms_norm_dynamic_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6, output_mask: object = None, **unused: None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total = x1 + x2
    normed = _normalized(total, epsilon) * gamma.float()
    scale = normed.abs().amax(-1) / 127.0
    y = _int8(normed / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None])
    return y, torch.zeros_like(y), total, scale, torch.zeros_like(scale)


@_kernel("ascend::quant_matmul")
def _quant_matmul(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, pertoken_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    total = (x.double() @ weight.double().t()).to(torch.int32)  # exact
    if dtype == torch.int32:
        return total if bias is None else total + bias
    wide = decode_scale(scale) if scale.dtype == torch.int64 else scale.float()
    result = (total if bias is None else total + bias).float() * wide
    return (result if pertoken_scale is None else result * pertoken_scale[:, None]).to(dtype)


@_kernel("ascend::dequantize")
def _dequantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.float() * scale).to(dtype)


@_kernel("ascend::weight_quant_matmul")
def _weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, (weight.float() * scale.float()[:, None]).to(x.dtype))


@_kernel("npu::npu_rotary_mul")
def _rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    assert rotary_mode == "half"
    assert rotate is None
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


@_kernel("npu::npu_geglu")
def _geglu(x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    left, right = x.chunk(2, dim)
    gate, other = (left, right) if activate_left else (right, left)
    activated = F.gelu(gate.float(), approximate="tanh" if approximate else "none")
    return (activated * other.float()).to(x.dtype), activated.to(x.dtype)


@_kernel("npu::npu_scatter_pa_kv_cache")
def _scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    cache_mode: str = "PA_NZ",
    **unused: None,
) -> None:
    assert cache_mode == "Norm"
    assert not any(unused.values())
    block_size = key_cache.shape[1]
    index = (slot_mapping // block_size, slot_mapping % block_size)
    key_cache.index_put_(index, key)
    value_cache.index_put_(index, value)


@_kernel("npu::npu_scatter_nd_update_")
def _scatter_nd_update_(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put_(tuple(indices.unbind(-1)), updates)


@_kernel("ascend::dynamic_quant_scatter_")
def _dynamic_quant_scatter_(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    wide = rows[:, 0].float()
    factor = 127.0 / wide.abs().amax(-1)
    factor = torch.where(factor.isinf(), 0, factor)
    cache[places[:, 0], 0] = _int8(wide * factor[:, None])
    scales[places[:, 0], 0, 0] = torch.where(factor == 0, 0, 1.0 / factor)


@_kernel("air::npu_fused_infer_attention_score")
def _fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    num_key_value_heads: int = 0,
    scale: float = 1.0,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    key_antiquant_scale: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
) -> tuple[Tensor, Tensor]:
    assert input_layout == "BSND" or (input_layout == "BNSD" and block_table is not None)
    if input_layout == "BNSD":
        query = query.transpose(1, 2)
    batch, tokens = query.shape[:2]
    if block_table is not None:
        assert key.shape[-2] == block_size
        table = block_table.long()
        if key.dim() == 4:  # [blocks, kv_heads, block_size, head_dim]
            key, value = (cache[table].transpose(2, 3).flatten(1, 2) for cache in (key, value))
        else:
            key, value = (cache[table].flatten(1, 2).unflatten(-1, (num_key_value_heads, -1)) for cache in (key, value))
        if key_antiquant_scale is not None and value_antiquant_scale is not None:
            assert key_antiquant_mode == value_antiquant_mode == 5
            scales = (key_antiquant_scale, value_antiquant_scale)
            factors = (by_head[table].transpose(2, 3).flatten(1, 2)[..., None] for by_head in scales)
            pairs = zip((key, value), factors, strict=True)
            key, value = ((x.float() * factor).to(query.dtype) for x, factor in pairs)
    kv_lens = _or_full(actual_seq_lengths_kv, batch, key.shape[1])
    q_lens = _or_full(actual_seq_lengths, batch, tokens)
    keys = torch.arange(key.shape[1])
    hidden = (keys >= kv_lens[:, None])[:, None, :].expand(-1, tokens, -1)
    rows = torch.arange(tokens)
    if sparse_mode == 3:  # causal, aligned to the last query and the last key
        assert atten_mask is not None
        hidden = hidden | (keys > (rows + (kv_lens - q_lens)[:, None])[:, :, None])
    out = _attend(query, key, value, hidden, scale)
    out = torch.where((rows < q_lens[:, None])[:, :, None, None], out, 0)
    return out.transpose(1, 2) if input_layout == "BNSD" else out, query.new_empty(0, dtype=torch.float32)


@_kernel("ascend::incre_flash_attention")
def _incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    actual_seq_lengths: Tensor,
    *,
    atten_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    input_layout: str = "BSH",
    block_size: int = 0,
) -> Tensor:
    assert input_layout == "BSH"
    assert atten_mask is None
    if block_table is not None:
        assert key.shape[1] == block_size
        key, value = (cache[block_table.long()].flatten(1, 2) for cache in (key, value))
    hidden = (torch.arange(key.shape[1]) >= actual_seq_lengths[:, None])[:, None, :]
    key, value = (x.unflatten(-1, (num_key_value_heads, -1)) for x in (key, value))
    return _attend(query.unflatten(-1, (num_heads, -1)), key, value, hidden, scale).flatten(2)


@_kernel("npu::npu_prompt_flash_attention")
def _prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    next_tokens: int = 0,
    **unused: None,
) -> Tensor:
    assert (input_layout, num_key_value_heads) == ("BSH", 0)
    assert next_tokens >= key.shape[1], "the mask is all there is"
    query, key, value = (x.unflatten(-1, (num_heads, -1)) for x in (query, key, value))
    return _attend(query, key, value, atten_mask[:, 0], scale_value).flatten(2)


def _int8(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127).to(torch.int8)


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    x32 = x.float()
    return x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)


def _or_full(lens: Tensor | None, batch: int, full: int) -> Tensor:
    return torch.full((batch,), full) if lens is None else lens


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """query [batch, tokens, heads, head_dim], key and value [batch, keys, kv_heads, head_dim], hidden bool
    [batch, tokens, keys] -> like query. What is hidden from all queries of a row may hold anything, NaN included."""
    unused = hidden.all(1)[:, :, None, None]
    group = query.shape[2] // key.shape[2]
    key, value = (torch.where(unused, 0, x).float().repeat_interleave(group, 2) for x in (key, value))
    scores = torch.einsum("btnd,bsnd->bnts", query.float(), key) * scale
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).nan_to_num()
    return torch.einsum("bnts,bsnd->btnd", weights, value).to(query.dtype)
