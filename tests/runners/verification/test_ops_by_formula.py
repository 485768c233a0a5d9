"""Every op that has a formula: the interpreter gives the formula's numbers, over dtypes and forms of its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.op_cases import CASES

from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.verification.acceptance import by_definition, compare_outputs
from graph_gemma.runners.verification.oracle import FORMULAS


def clones(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [v.clone() for v in value] if isinstance(value, list) else value.clone() for name, value in inputs.items()
    }


@pytest.mark.parametrize(("op", "inputs", "attrs"), CASES)
def test_the_interpreter_computes_the_formula(op: str, inputs: dict[str, Any], attrs: dict[str, Any]) -> None:
    expected = by_definition(op, clones(inputs), attrs)
    arguments = [clones(inputs).get(name) for name, _ in OPS[op].inputs]
    while arguments[-1] is None:
        arguments.pop()
    found = OPS[op].kernel(*arguments, **attrs)
    outputs = list(found) if isinstance(found, tuple) else [found]
    error, problem = compare_outputs(expected, outputs[: len(expected)], "the interpreter", "the formula")
    assert not problem, (error, problem)


def test_int8_is_one_of_the_nearest_integers() -> None:
    exact = torch.tensor([0.5, 1.4, -0.6, 400.0], dtype=torch.float64)
    for found, wrong in (([0, 1, -1, 127], 0), ([1, 1, -1, 127], 0), ([0, 2, -1, 127], 1), ([0, 1, 0, 126], 2)):
        error, problem = compare_outputs(
            [exact], [torch.tensor(found).to(torch.int8)], "the interpreter", "the formula"
        )
        assert (error, bool(problem)) == (wrong / 4, wrong > 0)


def test_a_device_may_round_few_integers_the_other_way() -> None:
    expected = torch.zeros(1000, dtype=torch.int8)
    for changes, who, wrong in (
        ({5: 1}, "the device", False),
        ({5: 1}, "the stand-in", True),
        ({5: 2}, "the device", True),
        ({5: 1, 6: -1}, "the device", True),
    ):
        found = expected.clone()
        for index, value in changes.items():
            found[index] = value
        assert bool(compare_outputs([expected], [found], who, "the interpreter")[1]) == wrong, (changes, who)


def test_every_formula_is_tried() -> None:
    assert FORMULAS.keys() == {op for op, _, _ in CASES}
