"""The rotary frequencies become a weight."""

from __future__ import annotations

import pytest
import torch
from support.graphs import BFLOAT16, CASES, Case, find, replace_call, rewrite

from graph_gemma.graph_model.weights import InverseFrequencies
from graph_gemma.passes.fold_inv_freq import FoldInvFreq
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.passes.framework.manager import run_passes

aten = torch.ops.aten
CHAIN = ("aten.arange.start_step", "aten.div.Tensor", "aten.pow.Scalar", "aten.reciprocal")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops_before_ops_after_matches_numerics(case: Case) -> None:
    done = rewrite(FoldInvFreq(), case)
    assert [done.before[op] for op in CHAIN] == [1, 1, 1, 1]
    assert [done.after[op] for op in CHAIN] == [0, 0, 0, 0]
    assert done.matches == 1
    assert done.error == 0.0
    assert done.graph.weight_plan["inv_freq"] == InverseFrequencies(case.config.rope_theta, case.config.head_dim)


def test_other_steps_are_a_near_miss() -> None:
    graph = BFLOAT16.before(FoldInvFreq)
    arange = find(graph, aten.arange.start_step)
    arange.update_arg(2, 1)
    with pytest.raises(PassError, match=r"matched 0 times.*arange in model: argument 2 \(step\) is 1, expected 2"):
        run_passes(graph, [FoldInvFreq()])


def test_a_theta_that_is_no_constant_is_a_near_miss() -> None:
    graph = BFLOAT16.before(FoldInvFreq)
    power = find(graph, aten.pow.Scalar)
    steps = power.args[1]
    replace_call(graph, power, aten.pow.Tensor_Scalar, steps, 2)
    with pytest.raises(PassError, match=r"reciprocal in model: argument 0 \(self\) is pow_\w+ \(aten\.pow\.Tens"):
        run_passes(graph, [FoldInvFreq()])


def test_a_head_dim_that_is_no_integer_is_a_near_miss() -> None:
    graph = BFLOAT16.before(FoldInvFreq)
    find(graph, aten.div.Tensor).update_arg(1, 16.5)
    with pytest.raises(PassError, match=r"fold_inv_freq matched 0 times.*div in model: .*16\.5"):
        run_passes(graph, [FoldInvFreq()])
