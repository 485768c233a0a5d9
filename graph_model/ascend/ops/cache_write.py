"""Write into KV caches: ScatterPaKvCache, ScatterNdUpdate, and DynamicQuantUpdateScatter, which quantizes rows too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc, element_count
from graph_gemma.graph_model.ascend.ops.op import AscendOp, ge, insert_node, shape_of
from graph_gemma.graph_model.ascend.ops.quantize import to_int8
from graph_gemma.graph_model.ascend.work import Operands, Work, update
from graph_gemma.graph_model.chips.chip import Chip

_ALIGNMENT = 32  # elements of a row that is quantized while it is written


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


def _scatter_nd_update_(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put_(tuple(indices.unbind(-1)), updates)


def _fake_dynamic_quant_scatter_(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    """Row i of `rows` [n, 1, size] becomes int8 with the scale max|row| / 127; both go to place[i].

    cache int8 [places, 1, size], scales float32 [places, 1, 1]; places int64 [n, 2]: the row of both, and 0.
    """
    torch._check(cache.dtype == torch.int8, lambda: "dynamic_quant_scatter: the cache must be int8")
    torch._check(scales.dtype == torch.float32, lambda: "dynamic_quant_scatter: the scales must be float32")
    torch._check(cache.shape[1:] == rows.shape[1:], lambda: "dynamic_quant_scatter: rows must be like the cache's")
    torch._check(scales.shape == (cache.shape[0], 1, 1), lambda: "dynamic_quant_scatter: a scale for each row")
    torch._check(places.shape == (rows.shape[0], 2), lambda: "dynamic_quant_scatter: a place for each row")


def _fake_dynamic_quant_scatter(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same, into copies, for the form that does not write in place."""
    return torch.empty_like(cache), torch.empty_like(scales)


def _functional_dynamic_quant_scatter(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    """How torch.func.functionalize writes the op that writes in place as the one that does not."""
    private: Any = torch  # what functionalisation is made of is not typed
    written = (cache, scales)
    plain = []
    for tensor in (*written, places, rows):
        private._sync(tensor)
        plain.append(private._from_functional_tensor(tensor))
    functionalize = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
    with torch._C._ExcludeDispatchKeyGuard(functionalize):
        results = torch.ops.ascend.dynamic_quant_scatter(*plain)
    for tensor, result in zip(written, results, strict=True):
        private._functionalize_replace(tensor, result)
        private._functionalize_commit_update(tensor)
        private._sync(tensor)


def _dynamic_quant_scatter_(cache: Tensor, scales: Tensor, places: Tensor, rows: Tensor) -> None:
    wide = rows[:, 0].float()
    factor = 127.0 / wide.abs().amax(-1)
    factor = torch.where(factor.isinf(), 0, factor)
    cache[places[:, 0], 0] = to_int8(wide * factor[:, None])
    scales[places[:, 0], 0, 0] = torch.where(factor == 0, 0, 1.0 / factor)


def _convert_dynamic_quant_scatter(cache: Any, scales: Any, places: Any, rows: Any) -> Any:
    """Source of the prototype: ops-nn quant/dynamic_quant_update_scatter/op_graph, *_proto.h."""
    written = {"var": ge().TensorMove(cache), "var_scale": ge().TensorMove(scales)}
    return insert_node(
        "DynamicQuantUpdateScatter",
        {**written, "indices": places, "updates": rows},
        list(written),
        {"reduce": "update", "axis": -2},
        optional=("smooth_scales",),
        defaults={"axis": 0},
    )


def _check_dynamic_quant_scatter(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    size = shape_of(inputs, "updates")[-1]
    if size % _ALIGNMENT:
        raise GeGraphError(f"a last axis of {size}; it is a multiple of {_ALIGNMENT}")
    if shape_of(inputs, "updates")[0] > shape_of(inputs, "var")[0]:
        raise GeGraphError("more updates than the cache has places")


def _dynamic_quant_scatter_work(node: Node, operands: Operands, context_length: int | None) -> Work:
    rows = operands["updates"]
    assert rows.shape is not None
    elements = element_count(rows)  # an int8 each, and a float32 scale for each row
    return Work(operands.bytes_read("var", "var_scale"), elements + 4 * elements // rows.shape[-1], vector=4 * elements)


_DYNAMIC_QUANT_SCATTER = AscendOp(
    "ascend::dynamic_quant_scatter_",
    "DynamicQuantUpdateScatter",
    schema="(Tensor(a!) cache, Tensor(b!) scales, Tensor places, Tensor rows) -> ()",
    fake=_fake_dynamic_quant_scatter_,
    functionalize=_functional_dynamic_quant_scatter,
    cpu=_dynamic_quant_scatter_,
    check=_check_dynamic_quant_scatter,
    work=_dynamic_quant_scatter_work,
    in_place={0: 0, 1: 1},
)
OPS = (
    AscendOp(
        "npu::npu_scatter_pa_kv_cache",
        "ScatterPaKvCache",
        cpu=_scatter_pa_kv_cache,
        work=update(("key_cache", "value_cache"), ("key", "value")),
    ),
    AscendOp(
        "npu::npu_scatter_nd_update_", "ScatterNdUpdate", cpu=_scatter_nd_update_, work=update(("var",), ("updates",))
    ),
    _DYNAMIC_QUANT_SCATTER,
    replace(
        _DYNAMIC_QUANT_SCATTER,
        torch_name="ascend::dynamic_quant_scatter",
        schema="(Tensor cache, Tensor scales, Tensor places, Tensor rows) -> (Tensor, Tensor)",
        fake=_fake_dynamic_quant_scatter,
        convert=_convert_dynamic_quant_scatter,
        functionalize=None,
        cpu=None,
    ),
)
