"""The roofline estimate against figures computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.ge_graphs import const, data, graph, node

from graph_gemma.graph_model.ascend.ge_graph import Node, TensorDesc
from graph_gemma.graph_model.chips.atlas_300i_duo import ATLAS_300I_DUO
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2, ATLAS_800I_A2_910B4
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.runners.backends.ascend.roofline import CostEstimate, NodeCost, estimate

HALF = torch.float16
A2 = ATLAS_800I_A2  # 1600 GB/s, 295 Tflop/s, 590 Top/s int8, 40 vector cores of 1.8 GHz, 56 GB/s per link


def typed(made: Node, *outputs: tuple[torch.dtype, tuple[int, ...]]) -> Node:
    made.outputs = [TensorDesc(f"y{i}", dtype, shape) for i, (dtype, shape) in enumerate(outputs)]
    return made


def estimate_one(*nodes: Node, soc: Chip = A2, context_length: int | None = None) -> NodeCost:
    """The cost of the last node, which is the output of the graph."""
    found = estimate(graph(*nodes, output=(nodes[-1].name,)), soc, context_length)
    assert not found.uncounted
    return found.nodes[len(nodes) - 1]


def product(m: int, k: int, n: int, dtype: torch.dtype = HALF, op: str = "MatMulV2") -> list[Node]:
    inputs = {"x1": "x", "x2": "w"}
    made = typed(node(op, "product", inputs, transpose_x2=True), (HALF, (m, n)))
    return [data("x", 0, dtype, (m, k)), data("w", 1, dtype, (n, k)), made]


def test_a_product_of_skinny_takes_the_time_of_its_weight() -> None:
    cost = estimate_one(*product(8, 2048, 16384))
    assert cost.work.read == 8 * 2048 * 2 + 16384 * 2048 * 2
    assert cost.work.written == 8 * 16384 * 2
    assert cost.work.matrix == 2 * 8 * 2048 * 16384
    assert cost.bound == "memory"
    assert cost.seconds == pytest.approx((32768 + 67108864 + 262144) / 1.6e12)
    half_the_bandwidth = estimate_one(*product(8, 2048, 16384), soc=ATLAS_800I_A2_910B4)
    assert half_the_bandwidth.seconds == pytest.approx(2 * cost.seconds)


def test_a_product_of_many_rows_is_bound_by_its_dtypes_rate() -> None:
    operations = 2 * 4096 * 4096 * 4096
    cost = estimate_one(*product(4096, 4096, 4096))
    assert (cost.bound, cost.seconds) == ("matrix", pytest.approx(operations / 295e12))
    quantized = product(4096, 4096, 4096, torch.int8, "QuantBatchMatmulV3")
    assert estimate_one(*quantized).times["matrix"] == pytest.approx(operations / 590e12)
    assert estimate_one(*product(4096, 4096, 4096, torch.float32)).times["matrix"] == pytest.approx(
        4 * operations / 295e12
    )


def test_a_transposed_left_side_has_its_inner_size_in_front() -> None:
    made = typed(node("BatchMatMulV2", "p", {"x1": "x", "x2": "w"}, adj_x1=True), (HALF, (2, 5, 7)))
    cost = estimate_one(data("x", 0, HALF, (2, 3, 5)), data("w", 1, HALF, (2, 3, 7)), made)
    assert cost.work.matrix == 2 * (2 * 5 * 7) * 3


def paged_attention(rows: int, heads: int, kv_heads: int, width: int) -> list[Node]:
    inputs = {"query": "q", "key0": "k", "value0": "v", "actual_seq_lengths_kv": "lens", "block_table": "table"}
    attrs: dict[str, Any] = {
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "block_size": 64,
        "input_layout": "BSND",
    }
    query = (rows, 1, heads, 256)
    return [
        data("q", 0, HALF, query),
        data("k", 1, HALF, (4096, 64, kv_heads * 256)),
        data("v", 2, HALF, (4096, 64, kv_heads * 256)),
        data("lens", 3, torch.int64, (rows,)),
        data("table", 4, torch.int32, (rows, width)),
        typed(node("FusedInferAttentionScore", "a", inputs, outputs=2, **attrs), (HALF, query), (torch.float32, (0,))),
    ]


def test_paged_attention_reads_the_context_and_not_the_cache() -> None:
    cost = estimate_one(*paged_attention(8, 8, 1, 16), context_length=500)
    keys_and_values = 8 * 500 * 256 * 2 * 2
    query = 8 * 8 * 256 * 2
    assert cost.work.read == query + keys_and_values + 8 * 8 + 8 * 16 * 4
    assert cost.work.written == query
    assert cost.work.matrix == 4 * 8 * 8 * 500 * 256
    assert cost.work.vector == 14 * 8 * 8 * 500


def test_attention_without_a_context_reads_its_whole_block_table() -> None:
    everything = estimate_one(*paged_attention(8, 8, 1, 16))
    assert everything.work == estimate_one(*paged_attention(8, 8, 1, 16), context_length=1024).work
    assert everything.work == estimate_one(*paged_attention(8, 8, 1, 16), context_length=5000).work


def test_rows_made_of_query_heads_read_the_cache_once_each() -> None:
    inputs = {"query": "q", "key0": "k", "value0": "k", "actual_seq_lengths": "lens", "block_table": "table"}
    made = node("IncreFlashAttention", "a", inputs, num_heads=1, num_key_value_heads=1, block_size=64)
    cost = estimate_one(
        data("q", 0, HALF, (2 * 8, 1, 256)),
        data("k", 1, HALF, (100, 64, 256)),
        data("lens", 2, torch.int64, (16,)),
        data("table", 3, torch.int32, (16, 4)),
        typed(made, (HALF, (16, 1, 256))),
        soc=ATLAS_300I_DUO,
        context_length=100,
    )
    assert cost.work.read == 16 * 256 * 2 + 2 * (16 * 100 * 256 * 2) + 16 * 8 + 16 * 4 * 4


def test_a_causal_chunk_counts_only_the_scores_that_it_may_see() -> None:
    inputs = {"query": "q", "key0": "k", "value0": "k", "atten_mask": "mask", "actual_seq_lengths_kv": "lens"}
    made = node("FusedInferAttentionScore", "a", inputs, num_heads=2, input_layout="BSND", sparse_mode=3)
    cost = estimate_one(
        data("q", 0, HALF, (1, 512, 2, 64)),
        data("k", 1, HALF, (1, 512, 2, 64)),
        data("mask", 2, torch.bool, (2048, 2048)),
        data("lens", 3, torch.int64, (1,)),
        typed(made, (HALF, (1, 512, 2, 64))),
    )
    assert cost.work.matrix == 4 * 2 * 64 * (512 * 513 // 2)
    assert cost.work.read == 3 * 512 * 128 * 2 + 8 + 512 * 512


def test_attention_without_lengths_reads_all_keys_and_its_mask() -> None:
    made = node("PromptFlashAttention", "a", {"query": "q", "key": "k", "value": "k", "atten_mask": "m"}, num_heads=2)
    cost = estimate_one(
        data("q", 0, HALF, (2, 16, 128)),
        data("k", 1, HALF, (2, 96, 128)),
        data("m", 2, torch.bool, (2, 1, 16, 96)),
        typed(made, (HALF, (2, 16, 128))),
        context_length=20,
    )
    assert cost.work.read == 2 * 16 * 128 * 2 + 2 * (2 * 96 * 128 * 2) + 2 * 16 * 96
    assert cost.work.matrix == 4 * 2 * 16 * 96 * 128


def test_a_scatter_writes_the_new_tokens_and_not_the_cache() -> None:
    cache = (HALF, (4096, 64, 1, 256))
    inputs = {"key": "k", "key_cache": "kc", "slot_mapping": "slots", "value": "v", "value_cache": "vc"}
    cost = estimate_one(
        data("k", 0, HALF, (8, 1, 256)),
        data("v", 1, HALF, (8, 1, 256)),
        data("kc", 2, *cache),
        data("vc", 3, *cache),
        data("slots", 4, torch.int64, (8,)),
        typed(node("ScatterPaKvCache", "s", inputs), cache, cache),
    )
    assert cost.work.written == 2 * 8 * 256 * 2
    assert cost.work.read == cost.work.written + 8 * 8
    flat = {"var": "kc", "indices": "rows", "updates": "k"}
    cost = estimate_one(
        data("k", 0, HALF, (8, 256)),
        data("kc", 1, HALF, (9999, 256)),
        data("rows", 2, torch.int64, (8, 1)),
        typed(node("ScatterNdUpdate", "s", flat), (HALF, (9999, 256))),
    )
    assert (cost.work.read, cost.work.written) == (8 * 256 * 2 + 8 * 8, 8 * 256 * 2)


def test_a_gather_reads_what_it_gathers() -> None:
    inputs = {"x": "table", "indices": "ids", "axis": "axis"}
    cost = estimate_one(
        data("table", 0, HALF, (256000, 2048)),
        data("ids", 1, torch.int64, (8, 1)),
        const("axis", torch.tensor([0])),
        typed(node("GatherV2", "g", inputs), (HALF, (8, 1, 2048))),
    )
    assert (cost.work.read, cost.work.written) == (8 * 8 + 8 + 8 * 2048 * 2, 8 * 2048 * 2)


def test_views_are_free_and_undeclared_tensors_are_derived() -> None:
    g = graph(
        data("x", 0, HALF, (4, 64)),
        const("shape", torch.tensor([64, 4])),
        node("Muls", "scaled", {"x": "x"}, value=2.0),  # torchair declares nothing of it
        typed(node("Cast", "cast", {"x": "scaled"}, dst_type=0), (torch.float32, (4, 64))),
        typed(node("Reshape", "view", {"x": "cast", "shape": "shape"}), (torch.float32, (64, 4))),
        output=("view",),
    )
    costs = {cost.name: cost for cost in estimate(g, A2).nodes}
    assert (costs["view"].seconds, costs["view"].bound) == (0, "free")
    assert (costs["scaled"].work.read, costs["scaled"].work.written, costs["scaled"].work.vector) == (512, 512, 256)
    assert (costs["cast"].work.read, costs["cast"].work.written) == (512, 1024)


def test_vector_work_is_limited_by_the_vector_cores() -> None:
    made = typed(node("Exp", "e", {"x": "x"}), (torch.float32, (1000, 1000)))
    cost = estimate_one(data("x", 0, torch.float32, (1000, 1000)), made, soc=ATLAS_300I_DUO)
    assert cost.times["vector"] == pytest.approx(10 * 1e6 / (8 * 64 * 1.06e9))
    assert cost.bound == "memory"  # 8 MB at 204 GB/s


def collective(op: str, **attrs: Any) -> list[Node]:
    made = node(op, "c", {"x": "x"}, group="tag=ptd:0;rank_list=0,1,2,3", **attrs)
    return [data("x", 0, HALF, (8, 2048)), typed(made, (HALF, (8, 2048)))]


@pytest.mark.parametrize(
    ("op", "per_link"),
    [
        ("HcomAllReduce", 2 * 32768 / 4),  # each chip reduces a quarter and returns it
        ("HcomReduceScatter", 32768 / 4),
        ("HcomAllGather", 32768),
        ("HcomBroadcast", 32768),
    ],
)
def test_collectives_take_the_time_of_one_link(op: str, per_link: float) -> None:
    cost = estimate_one(*collective(op))
    assert cost.bound == "link"
    assert cost.seconds == pytest.approx(per_link / 56e9)


def test_a_fused_all_reduce_takes_the_longer_of_both_times() -> None:
    made = node("MatmulAllReduce", "p", {"x1": "x", "x2": "w"}, group="tag=ptd:0;rank_list=0,1,2,3", is_trans_b=True)
    nodes = [data("x", 0, HALF, (512, 4096)), data("w", 1, HALF, (2048, 4096)), typed(made, (HALF, (512, 2048)))]
    cost = estimate_one(*nodes)
    assert cost.work.matrix == 2 * 512 * 4096 * 2048
    assert cost.work.read + cost.work.written == 2 * (512 * 4096 + 2048 * 4096 + 512 * 2048)
    assert cost.work.link == 2 * (2 * 512 * 2048) / 4
    assert cost.seconds == pytest.approx(max(cost.times.values()))


def test_what_cannot_be_counted_is_named() -> None:
    def uncounted(*nodes: Node, soc: Chip = A2) -> CostEstimate:
        return estimate(graph(*nodes, output=(nodes[-1].name,)), soc)

    assert "no link rate" in uncounted(*collective("HcomAllReduce"), soc=ATLAS_300I_DUO).uncounted["c"]
    nameless = replace(collective("HcomAllReduce")[1], attrs={"group": "hccl"})
    assert "size of its group" in uncounted(data("x", 0, HALF, (8, 2048)), nameless).uncounted["c"]
    opaque = node("Opaque", "o", {"x": "x", "y": "y"})
    found = uncounted(data("x", 0, HALF, (8, 3)), data("y", 1, HALF, (8, 2)), opaque)
    assert "not declared" in found.uncounted["o"]
    assert found.total_s == 0


def test_sums_are_of_all_nodes_and_the_slowest_group_comes_first() -> None:
    first, second = product(8, 2048, 16384)[:2], product(8, 2048, 16384)[2]
    small = typed(node("Add", "add", {"x1": "product", "x2": "product"}), (HALF, (8, 16384)))
    found = estimate(graph(*first, second, small, output=("add",)), A2)
    assert found.total_s == pytest.approx(sum(cost.seconds for cost in found.nodes))
    assert found.total.bytes == sum(cost.work.read + cost.work.written for cost in found.nodes)
    groups = found.by(lambda cost: cost.type)
    assert next(iter(groups)) == "MatMulV2"
    assert groups["MatMulV2"].seconds + groups["Add"].seconds == pytest.approx(found.total_s)
