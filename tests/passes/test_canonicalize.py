"""One spelling for each operation."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, LAYERS, Case, find, replace_call, rewrite

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.canonicalize import Canonicalize
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes

aten = torch.ops.aten
SPELLINGS = ("aten.chunk", "aten.unflatten.int", "aten.flatten.using_ints", "aten._assert_tensor_metadata")


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(Canonicalize(), case, bucket)
    assert [done.before[op] for op in SPELLINGS[:3]] == [2 * LAYERS, 3 * LAYERS, LAYERS]
    assert [done.after[op] for op in SPELLINGS] == [0, 0, 0, 0]
    assert (done.after["aten.reshape"], done.after["aten.slice.Tensor"]) == (4 * LAYERS, 4 * LAYERS)
    dropped = [done.before[op] - done.after[op] for op in ("aten.mul.Tensor", "aten.to.dtype")]
    assert dropped[0] == 1  # reciprocal * 1.0
    assert done.matches == sum(done.before[op] for op in SPELLINGS) + sum(dropped)
    assert done.error == 0.0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_casts_that_change_the_dtype_stay(case: Case) -> None:
    graph = rewrite(Canonicalize(), case).graph
    casts = graph.calls(aten.to.dtype)
    assert all(cast.args[0].meta["val"].dtype != cast.meta["val"].dtype for cast in casts)
    norms = 2 * LAYERS + 1
    assert len(casts) == (1 if case.dtype == torch.float32 else 1 + 2 + 3 * norms)


def test_a_tied_embedding_is_one_weight() -> None:
    case = CASES["attention_bias-bfloat16"]
    before, graph = case.captured(), rewrite(Canonicalize(), case).graph
    assert [str(e) for e in before.weight_plan.values()].count("model.embed_tokens.weight") <= 2
    assert [str(e) for e in graph.weight_plan.values()].count("model.embed_tokens.weight") == 1


def test_a_product_with_another_number_stays() -> None:
    graph = CASES["untied_head-float32"].captured()
    scaling = find(graph, aten.mul.Tensor, "model")
    number = scaling.args[1]
    run_passes(graph, [Canonicalize()])
    assert find(graph, aten.mul.Tensor, "model").args[1] == number


def test_unequal_chunks_are_cut_where_chunk_cuts() -> None:
    """chunk(15, 2) is 8 and 7 elements."""
    graph = CASES["untied_head-float32"].captured()
    x = find(graph, aten.linear.default, "lm_head")
    graph.graph.erase_node(graph.graph.output_node())
    narrow = append(graph, aten.slice.Tensor, x, -1, 0, 15)
    chunk = append(graph, aten.chunk.default, narrow, 2, -1)
    second = append(graph, lambda pieces, index: pieces[index], chunk, 1)
    graph.graph.output((second,))

    Canonicalize().apply(graph)

    assert graph.outputs[0].args[1:] == (-1, 8, 15)


def append(graph: ModelGraph, target, *args: object) -> torch.fx.Node:
    import operator

    target = operator.getitem if target.__name__ == "<lambda>" else target
    node = graph.graph.call_function(target, args)
    with graph.fake_mode:
        node.meta["val"] = target(*torch.fx.map_arg(args, lambda n: n.meta["val"]))
    node.meta["layer"] = ""
    return node


def test_an_op_without_a_spelling_is_refused() -> None:
    graph = CASES["untied_head-float32"].captured()
    gelu = find(graph, aten.gelu.default, "layers.1.mlp")
    replace_call(graph, gelu, aten.relu.default, gelu.args[0])
    with pytest.raises(PassError, match=r"after canonicalize: relu calls aten\.relu, which is no op of a step"):
        run_passes(graph, [Canonicalize()])
