"""Verify each op of lowered graphs alone: device against interpreter against formula."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.ascend.graph_file import read_model
from graph_gemma.graph_model.numerics import OP_TOLERANCE, relative_difference
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.engine import EngineGraph
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.verification.oracle import FORMULAS
from graph_gemma.runners.verification.single_ops import SingleOp

# A number this near to a tie, relative to itself, may be rounded to either side: fp32 cannot tell.
_NEAR_TIE = 2e-6
# Of this many integers a device may give one that is a unit off, for the same reason.
_INTEGERS_PER_TIE = 1000


@dataclass
class OpResult:
    """What running one op alone gave: the largest relative differences over its outputs; None: not compared."""

    type: str
    case: str
    step: str  # that it was cut from
    allowed: float  # the bound for its narrowest output
    formula: float | None = None  # the interpreter's result from the formula's
    engine: float | None = None  # the engine's from the interpreter's; on the stand-in the engine is the interpreter
    problem: str = ""  # what is wrong; "": nothing


def verify_ops(cases: Iterable[SingleOp]) -> list[OpResult]:
    """Run every op alone and compare, in the order of their types and cases. Needs torch_npu."""
    return [verify_op(single) for single in sorted(cases, key=lambda single: single.key)]


@torch.no_grad()
def verify_op(single: SingleOp) -> OpResult:
    """The interpreter's result against the formula's, and the engine's against the interpreter's. Needs torch_npu."""
    result = OpResult(single.node.type, single.key, single.step, 0.0)
    interpreted = interpret(single)
    result.allowed = max(OP_TOLERANCE.get(value.dtype, 0.0) for value in interpreted)
    formula = FORMULAS.get(single.node.type)
    if formula is None:
        result.problem = "there is no formula for this op type"
    else:
        try:
            expected = by_formula(single)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
            result.problem = f"the formula cannot take it: {error!r}"
        else:
            result.formula, result.problem = compare_outputs(expected, interpreted, "the interpreter", "the formula")
    try:
        found = run_on_engine(single)
    except (RuntimeError, GeGraphError) as error:
        result.problem = result.problem or f"{engine_name()} refuses it: {error}"
    else:
        result.engine, problem = compare_outputs(interpreted, found, engine_name(), "the interpreter")
        result.problem = result.problem or problem
    return result


def engine_name() -> str:
    """What executes graphs that torchair's engine is given: the device or the stand-in."""
    return "the stand-in" if standin.is_standin() else "the device"


def interpret(single: SingleOp) -> list[Tensor]:
    """The interpreter's outputs."""
    return Program(read_model(single.serialized)).run([value.clone() for value in single.data])


def run_on_engine(single: SingleOp) -> list[Tensor]:
    """The engine's outputs, on the host."""
    outputs = EngineGraph(single.serialized, len(single.data)).run([value.to("npu") for value in single.data])
    return [output.cpu() for output in outputs]


def by_formula(single: SingleOp) -> list[Tensor]:
    """The formula's outputs, unrounded."""
    attrs = {name: value for name, value in single.node.attrs.items() if not name.startswith("_")}
    outputs = by_definition(single.node.type, single.arguments, attrs)
    return [outputs[index] for index in single.outputs]


def by_definition(op_type: str, inputs: dict[str, Any], attrs: dict[str, Any]) -> list[Tensor]:
    """All outputs of an op by its formula."""
    dtypes = {name: value.dtype for name, value in inputs.items() if isinstance(value, Tensor)}
    plain = {name: _plain(value) for name, value in inputs.items()}
    return FORMULAS[op_type](plain, {**attrs, "input_dtypes": dtypes})


def compare_outputs(expected: list[Tensor], found: list[Tensor], who: str, reference: str) -> tuple[float, str]:
    """The largest difference (of integers the share that differs), and a problem if it is too large."""
    if len(found) != len(expected):
        return float("inf"), f"{who} gives {len(found)} outputs, {reference} {len(expected)}"
    worst, problem = 0.0, ""
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        error, allowed = _error(a, b), OP_TOLERANCE.get(b.dtype, 0.0)
        if error and who == "the device" and _are_near_ties(a, b):
            error = 0.0
        if not error <= allowed:
            problem = problem or f"output {index}: {who} differs from {reference} by {error:.1e}"
        worst = max(worst, error)
    return worst, problem


def _error(expected: Tensor, found: Tensor) -> float:
    """The relative difference of a result from a formula's unrounded numbers; integers and booleans must be equal."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.is_floating_point() and found.dtype == torch.int8:
        slack = _NEAR_TIE * expected.abs().clamp(min=1)
        low, high = ((expected + side).round().clamp(-128, 127) for side in (-slack, slack))
        return ((found < low) | (found > high)).double().mean().item()
    if expected.is_floating_point() != found.is_floating_point():
        return float("inf")
    if expected.is_floating_point():
        return relative_difference(expected.double(), found.double())
    return relative_difference(expected.to(found.dtype), found)


def _are_near_ties(expected: Tensor, found: Tensor) -> bool:
    """Whether so few quantized numbers differ, and by so little, that their rounding explains it."""
    if expected.dtype != torch.int8 or found.dtype != torch.int8 or expected.shape != found.shape:
        return False
    apart = (expected.int() - found.int()).abs()
    return int(apart.max()) <= 1 and int(apart.sum()) <= max(1, apart.numel() // _INTEGERS_PER_TIE)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.double() if value.is_floating_point() else value if value.dtype is torch.bool else value.long()
