"""The residual sum moves into the norm behind it."""

from __future__ import annotations

import pytest
import torch
from support.graphs import CASES, FLOAT32, LAYERS, Case, find, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.passes.add_rms_norm import AddRMSNorm
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes

aten = torch.ops.aten


@pytest.mark.parametrize("bucket", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(AddRMSNorm(), case, bucket)
    assert (done.before["gemma.rms_norm"], done.after["gemma.rms_norm"]) == (2 * LAYERS + 1, 1)
    assert (done.before["aten.add.Tensor"], done.after["aten.add.Tensor"]) == (2 * LAYERS, 0)
    assert done.after["gemma.add_rms_norm"] == done.matches == 2 * LAYERS
    assert done.error == 0.0


def test_the_first_norm_has_no_sum_before_it() -> None:
    graph = rewrite(AddRMSNorm(), FLOAT32).graph
    (norm,) = graph.calls(ops.rms_norm)
    assert norm.meta["layer"] == "model.layers.0.input_layernorm"


def test_a_scaled_sum_is_a_near_miss() -> None:
    graph = FLOAT32.before(AddRMSNorm)
    find(graph, aten.add.Tensor, "layers.1").kwargs = {"alpha": 2}
    reason = r"add\w* in model\.layers\.1: is not a plain sum of two tensors"
    with pytest.raises(PassError, match=rf"add_rms_norm matched 3 times, expected 4 .*{reason}"):
        run_passes(graph, [AddRMSNorm()])


def test_a_sum_with_a_number_is_a_near_miss() -> None:
    graph = FLOAT32.before(AddRMSNorm)
    find(graph, aten.add.Tensor, "layers.1").update_arg(1, 0.5)
    with pytest.raises(PassError, match="is not a plain sum of two tensors"):
        run_passes(graph, [AddRMSNorm()])


def test_a_norm_of_something_else_is_a_near_miss() -> None:
    graph = FLOAT32.before(AddRMSNorm)
    norm = find(graph, ops.rms_norm, "layers.1.post_attention_layernorm")
    norm.update_arg(0, graph.insert(aten.neg.default, norm.args[0], at=norm))
    reason = r"layers\.1\.post_attention_layernorm: argument 0 is neg\w* \(aten\.neg\), expected"
    with pytest.raises(PassError, match=rf"add_rms_norm matched 3 times, expected 4 .*{reason}"):
        run_passes(graph, [AddRMSNorm()])
