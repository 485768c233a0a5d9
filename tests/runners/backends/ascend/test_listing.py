"""The listing of a GE graph, its counts, and the graph's legality on a chip."""

from __future__ import annotations

import pytest
import torch
from support.ge_graphs import const, data, graph, node

from graph_gemma.graph_model.ascend.ge_graph import Edge, GeGraph, GeGraphError, Node, TensorDesc
from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.chips.atlas_300i_duo import ATLAS_300I_DUO
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.runners.backends.ascend.printer import count_nodes, list_graph


def small_graph() -> GeGraph:
    half = torch.float16
    product = node("MatMulV2", "MatMulV2", {"x1": "x", "x2": "Transpose"}, transpose_x2=True, transpose_x1=False)
    product.outputs = [TensorDesc("y", half, (2, 8), fx_name="linear_1-ascend.linear.default.OUTPUT.0")]
    g = graph(
        data("x", 0, half, (2, 4)),
        data("w", 1, half, (4, 8)),
        data("cache", 2, half, (9, 8)),
        data("rows", 3, torch.int64, (2, 1)),
        const("perm", torch.tensor([1, 0])),
        node("Transpose", "Transpose", {"x": "w", "perm": "perm"}),
        product,
        node("ScatterNdUpdate", "Scatter", {"var": "cache", "indices": "rows", "updates": "MatMulV2"}),
        node("Cast", "Cast", {"x": "Scatter"}, dst_type=0, _private=1),
        output=("Cast",),
        controls=("Scatter",),
    )
    g.attrs["_input_placements"] = [1, 1, 1, 0]
    return g


def test_a_listing_shows_edges_shapes_references_and_origins() -> None:
    assert list_graph(small_graph()).splitlines() == [
        "graph: 4 inputs (1 on the host), 1 constants, 4 compute nodes, 1 copies of weights",
        "ops: Cast 1, MatMulV2 1, ScatterNdUpdate 1, Transpose 1",
        "%x = Data() {index=0} -> float16[2,4]",
        "%w = Data() {index=1} -> float16[4,8]",
        "%cache = Data() {index=2} -> float16[9,8]",
        "%rows = Data() {index=3} -> int64[2,1]",
        "%Transpose = Transpose(x=%w, perm=[1, 0]) -> ?[?]",
        "%MatMulV2 = MatMulV2(x1=%x, x2=%Transpose) {transpose_x2=True} -> float16[2,8]"
        "  # linear_1 (ascend.linear.default)",
        "%Scatter = ScatterNdUpdate(&var=%cache, indices=%rows, updates=%MatMulV2) -> ?[?]",
        "%Cast = Cast(x=%Scatter) {dst_type=0} -> ?[?]",
        "%NetOutput = NetOutput(input0=%Cast) after %Scatter",
    ]


def test_counts_tell_copies_of_weights_from_other_copies() -> None:
    counts = count_nodes(small_graph())
    assert counts.copies == {"TensorMove": 0, "Assign": 0, "Transpose": 1, "Cast": 1}
    assert counts.weight_copies == 1
    assert counts.host_inputs == 1


@pytest.mark.parametrize("copy", ["Transpose", "Cast"])
@pytest.mark.parametrize("views", [("Reshape",), ("Identity", "Unsqueeze"), ("Squeeze", "ExpandDims", "Bitcast")])
def test_copies_of_views_of_weights_are_copies_of_weights(copy: str, views: tuple[str, ...]) -> None:
    def copies(weight: Node, *before: Node) -> int:
        chain = [*before, *(node(op_type, op_type, {"x": "?"}) for op_type in views), node(copy, "copy", {"x": "?"})]
        for previous, current in zip([weight, *chain], chain, strict=False):
            current.inputs = [Edge("x", previous.name, 0)]
        return count_nodes(graph(weight, *chain, output=("copy",))).weight_copies

    weight = data("w", 0, torch.float16, (4, 8))
    assert copies(weight) == 1
    assert copies(weight, node("Muls", "computed", {"x": "?"}, value=2.0)) == 0
    assert copies(data("ids", 0, torch.int64, (4, 8))) == 0
    vector = data("norm", 0, torch.float16, (8,))
    assert copies(vector) == 0, "nothing says that it is a weight"
    vector.attrs["_model_value"] = "weight model.norm.weight"
    assert copies(vector) == 1
    weight.attrs["_model_value"] = "cache"
    assert copies(weight) == 0


def test_large_constants_are_shown_by_shape_and_digest() -> None:
    def text(value: torch.Tensor) -> str:
        g = graph(data("x", 0), const("c", value), node("Add", "n", {"x1": "x", "x2": "c"}), output=("n",))
        return list_graph(g)

    a = torch.arange(100.0)
    assert "const float32[100]#" in text(a)
    assert text(a) == text(a.clone())
    assert text(a) != text(a + 1)


def attention(op: str, query: tuple[int, ...], **attrs: object) -> GeGraph:
    half = torch.float16
    dynamic = "" if op == "PromptFlashAttention" else "0"
    inputs = {"query": "q", f"key{dynamic}": "k", f"value{dynamic}": "k", "block_table": "table"}
    if op == "PromptFlashAttention":
        inputs.pop("block_table")
    nodes: list[Node] = [
        data("q", 0, half, query),
        data("k", 1, half, (8, 64, 512)),
        data("table", 2, torch.int32, (2, 2)),
        node(op, "attention", inputs, **attrs),
    ]
    return graph(*nodes, output=("attention",))


@pytest.mark.parametrize(
    ("soc", "g", "message"),
    [
        (ATLAS_800I_A2, attention("FusedInferAttentionScore", (2, 8, 512), num_heads=2, block_size=64), "of 128"),
        (ATLAS_800I_A2, attention("FusedInferAttentionScore", (2, 1, 512), num_heads=2, block_size=40), "of 16"),
        (ATLAS_800I_A2, attention("FusedInferAttentionScore", (2, 1, 40), num_heads=2, block_size=64), "head_dim 20"),
        (ATLAS_800I_A2, attention("FusedInferAttentionScore", (2, 512), num_heads=2, input_layout="TND"), "TND"),
        (ATLAS_300I_DUO, attention("FusedInferAttentionScore", (2, 1, 512), num_heads=2, block_size=64), "no such op"),
        (ATLAS_300I_DUO, attention("IncreFlashAttention", (2, 1, 512), num_heads=2, block_size=64), "<= 128"),
        (
            ATLAS_300I_DUO,
            attention("IncreFlashAttention", (300, 1, 512), num_heads=2, num_key_value_heads=2, block_size=64),
            "300 rows",
        ),
        (ATLAS_300I_DUO, attention("PromptFlashAttention", (2, 8, 512), num_heads=2), "as many key heads"),
    ],
)
def test_illegal_attention_is_refused(soc: object, g: GeGraph, message: str) -> None:
    with pytest.raises(GeGraphError, match=message):
        check_graph(g, soc)  # type: ignore[arg-type]


def test_legal_attention_passes() -> None:
    check_graph(attention("FusedInferAttentionScore", (2, 1, 512), num_heads=2, block_size=64), ATLAS_800I_A2)
    check_graph(attention("FusedInferAttentionScore", (2, 8, 512), num_heads=2, block_size=128), ATLAS_800I_A2)
    legal = attention("IncreFlashAttention", (2, 1, 512), num_heads=2, num_key_value_heads=2, block_size=64)
    check_graph(legal, ATLAS_300I_DUO)


def int8_product(features: tuple[int, int], dtype: torch.dtype = torch.float16) -> GeGraph:
    """x [2, in] times a weight stored [out, in]; features: in and out."""
    weight = data("w", 1, torch.int8, features[::-1])
    product = node("QuantBatchMatmulV3", "product", {"x1": "x", "x2": "w"}, transpose_x2=True)
    product.outputs = [TensorDesc("y", dtype, (2, features[1]))]
    return graph(data("x", 0, torch.int8, (2, features[0])), weight, product, output=("product",))


def test_quantized_weights_are_bounded_in_their_last_dimension() -> None:
    check_graph(int8_product((2048, 256000)), ATLAS_800I_A2)
    with pytest.raises(GeGraphError, match="last dimension is 65536; the limit is 65535"):
        check_graph(int8_product((65536, 8)), ATLAS_800I_A2)


def test_integers_are_given_out_by_chips_that_scale_them_later() -> None:
    check_graph(int8_product((64, 8), torch.int32), ATLAS_800I_A2)
    with pytest.raises(GeGraphError, match="gives no int32 here"):
        check_graph(int8_product((64, 8), torch.int32), ATLAS_300I_DUO)
