"""Attention gets caches, tables and lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graphs import BUCKETS, CASES, FLOAT32, KV_CACHE, LAYERS, Case, find, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.paged_attention import PagedAttention

aten = torch.ops.aten
INPUTS = {
    "prefill": ["input_ids", "positions", "slot_mapping", "query_lens"],
    "extend": ["input_ids", "positions", "slot_mapping", "context_lens", "query_lens", "block_table"],
    "decode": ["input_ids", "positions", "slot_mapping", "context_lens", "block_table"],
}


@pytest.mark.parametrize("bucket", INPUTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(PagedAttention(), case, bucket)
    parts = ("aten.scaled_dot_product_attention", "aten.transpose.int")
    assert [done.before[op] for op in parts] == [LAYERS, 4 * LAYERS]
    assert [done.after[op] for op in parts] == [0, 0]
    assert done.after["gemma.paged_attention"] == done.matches == LAYERS
    assert done.error <= (1e-5 if case.dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("bucket", INPUTS)
def test_signature_has_caches_and_what_the_phase_reads(bucket: str) -> None:
    graph = rewrite(PagedAttention(), FLOAT32, bucket).graph
    shape = BUCKETS[bucket]
    values = {node.name: node.meta["val"] for node in graph.placeholders("input")}
    assert list(values) == INPUTS[bucket]
    assert {tuple(values[n].shape) for n in ("input_ids", "slot_mapping")} == {(shape.batch, shape.chunk)}
    assert all(value.dtype == torch.int64 for value in values.values())
    if "block_table" in values:
        assert values["block_table"].shape == (shape.batch, shape.max_blocks_per_seq)
    caches = graph.placeholders("cache")
    assert [c.name for c in caches] == [f"{kind}_cache_{i}" for i in range(LAYERS) for kind in ("key", "value")]
    size = (KV_CACHE.num_blocks, KV_CACHE.block_size, FLOAT32.config.num_key_value_heads, FLOAT32.config.head_dim)
    assert {tuple(c.meta["val"].shape) for c in caches} == {size}
    assert {c.meta["val"].dtype for c in caches} == {torch.float32}
    kinds = [n.meta["kind"] for n in graph.graph.nodes if n.op == "placeholder"]
    assert kinds == sorted(kinds, key=("weight", "cache", "input").index)


def test_every_layer_has_its_own_cache() -> None:
    graph = rewrite(PagedAttention(), FLOAT32).graph
    for layer, node in enumerate(graph.calls(ops.paged_attention)):
        assert node.meta["layer"] == f"model.layers.{layer}.self_attn"
        assert [a.name for a in node.args[3:5]] == [f"key_cache_{layer}", f"value_cache_{layer}"]


def attention(graph: ModelGraph) -> torch.fx.Node:
    return find(graph, aten.scaled_dot_product_attention.default, "layers.1.self_attn")


def set_argument(index: int, value: object) -> Callable[[ModelGraph], None]:
    return lambda graph: attention(graph).update_arg(index, value)


def set_keyword(name: str, value: Any) -> Callable[[ModelGraph], None]:
    return lambda graph: attention(graph).update_kwarg(name, value)


def add_mask(graph: ModelGraph) -> None:
    attention(graph).update_arg(3, find(graph, aten.transpose.int, "layers.1.self_attn"))


def read_untransposed(graph: ModelGraph) -> None:
    transposed = find(graph, aten.transpose.int, "layers.1.self_attn")
    attention(graph).update_arg(0, transposed.args[0])


def swap_other_dimensions(graph: ModelGraph) -> None:
    find(graph, aten.transpose.int, "layers.1.self_attn").args = (
        find(graph, aten.transpose.int, "layers.1.self_attn").args[0],
        2,
        3,
    )


BREAKS: dict[str, tuple[Callable[[ModelGraph], None], str]] = {
    "not_causal": (set_argument(5, False), r"argument 5 \(is_causal\) is False, expected True"),
    "mask": (add_mask, r"argument 3 \(attn_mask\) is transpose_\d .*, expected None"),
    "dropout": (set_argument(4, 0.1), r"argument 4 \(dropout_p\) is 0\.1, expected 0\.0"),
    "default_scale": (set_keyword("scale", None), r"argument 6 \(scale\) is None, expected 0\.25"),
    "layout": (read_untransposed, r"argument 0 \(query\) is .*, expected a call of aten\.transpose\.int"),
    "dimensions": (swap_other_dimensions, r"argument 1 \(dim0\) is 2, expected 1"),
}


@pytest.mark.parametrize(("change", "reason"), BREAKS.values(), ids=BREAKS)
def test_a_broken_pattern_is_an_error_that_names_the_near_miss(
    change: Callable[[ModelGraph], None], reason: str
) -> None:
    graph = FLOAT32.before(PagedAttention)
    change(graph)
    where = r"\w+ in model\.layers\.1\.self_attn: "
    with pytest.raises(PassError, match=rf"paged_attention matched 1 times, expected 2 .*{where}{reason}"):
        run_passes(graph, [PagedAttention()])


def test_a_changed_scale_is_a_near_miss() -> None:
    graph = FLOAT32.before(PagedAttention)
    attention(graph).update_kwarg("scale", 0.3)
    with pytest.raises(PassError, match=r"argument 6 \(scale\) is 0\.3, expected 0\.25"):
        run_passes(graph, [PagedAttention()])


def test_attention_outside_a_layer_is_refused() -> None:
    graph = FLOAT32.before(PagedAttention)
    attention(graph).meta["layer"] = "model.pooler"
    with pytest.raises(PassError, match=r"was traced in 'model\.pooler', expected a decoder layer's module"):
        run_passes(graph, [PagedAttention()])
