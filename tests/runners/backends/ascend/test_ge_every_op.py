"""Every op type of the interpreter has a test of its own, and the names and defaults of the prototype."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import test_ge_arrangement_definitions
import test_ge_collective_ops
import test_ge_elementwise_definitions
import test_ge_quant_definitions
from support.op_cases import CASES

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES
from graph_gemma.runners.backends.ascend.interpreter import ops as _ops  # noqa: F401  (fills the registry)
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS, OpSpec

MODULES = (
    test_ge_arrangement_definitions,
    test_ge_collective_ops,
    test_ge_elementwise_definitions,
    test_ge_quant_definitions,
)
# Not in torchair's list of prototypes; the op documents describe them.
WITHOUT_PROTOTYPE = {"AddRmsNormQuant", "Cast", "DynamicQuantUpdateScatter", "GemmV2", "GemmaRmsNorm"}
# Attributes of newer prototypes than torchair's list has, each refused or noted where it is used.
NEWER = {
    ("QuantBatchMatmulV3", "group_size"),
    ("RotaryMul", "mode"),
    ("Round", "decimals"),
    ("Sort", "y2_dtype"),
    ("TopK", "indices_dtype"),
    ("TopK", "sort_policy"),
    ("TopKV2", "indices_dtype"),
    ("TopKV2", "sort_policy"),
}


def covered(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if name.startswith("test_"):
            yield from getattr(value, "covered_ge_ops", ())


def test_every_op_type_is_checked_by_a_formula_alone() -> None:
    tested = {op for op, _, _ in CASES}
    for module in MODULES:
        tested |= set(covered(module))
    assert OPS.keys() - tested == set(), "add a test of the op alone to a test_ge_*_definitions.py"
    assert tested - OPS.keys() == set()


def prototypes() -> dict[str, str]:
    """The REG_OP declarations that torchair carries, read as text: torch_npu is not imported."""
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch_npu is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "dynamo" / "torchair" / "_ge_concrete_graph"
    text = "".join((folder / f"{name}.py").read_text() for name in ("auto_generated_ge_raw_ops", "dynamic_output_ops"))
    return {match[1]: match[2] for match in re.finditer(r'"""REG_OP\((\w+)\)(.*?)"""', text, re.DOTALL)}


def value(text: str) -> object:
    """A default as C++ writes it."""
    numbers = {"FLOAT": 0, "FLOAT16": 1, "BF16": 27, "INT8": 2, "INT32": 3, "INT64": 9}
    text = text.strip()
    if text.startswith("DT_"):
        assert numbers[text[3:]] in GE_DTYPES
        return numbers[text[3:]]
    if text in ("true", "false"):
        return text == "true"
    if text.startswith(("{", '"')):
        return [int(item) for item in re.findall(r"-?\d+", text)] if text[0] == "{" else text.strip('"')
    return float(text) if re.search(r"[.e]", text) else int(text)


def differences(spec: OpSpec, prototype: str) -> list[str]:
    kinds = {"INPUT": "required", "OPTIONAL_INPUT": "optional", "DYNAMIC_INPUT": "dynamic"}
    inputs = [(name, kinds[kind]) for kind, name in re.findall(r"\.((?:OPTIONAL_|DYNAMIC_)?INPUT)\((\w+)", prototype)]
    found = []
    known = dict(spec.inputs)
    if [pair for pair in inputs if pair[0] in known] != list(spec.inputs):
        found.append(f"inputs {spec.inputs}, the prototype has {inputs}")
    if missing := [name for name, kind in inputs if kind != "optional" and name not in known]:
        found.append(f"inputs {missing} are missing")
    attrs = dict(re.findall(r"\.AT(?:TR|RR)\((\w+), \w+, (.*?)\)(?:\\n|\n)", prototype))
    required = set(re.findall(r"\.REQUIRED_ATTR\((\w+)", prototype))
    for name in {*spec.defaults, *spec.required_attrs}:
        if name not in {*attrs, *required} and (spec.type, name) not in NEWER:
            found.append(f"attribute {name} is not the prototype's")
    for name, own in spec.defaults.items():
        own = [] if own is None or own == () else own
        if name in required or (name in attrs and value(attrs[name]) != own):
            found.append(f"attribute {name} defaults to {own!r}, the prototype says {attrs.get(name, 'required')}")
    return found


def test_inputs_attributes_and_defaults_are_the_prototypes() -> None:
    declared = prototypes()
    assert OPS.keys() - declared.keys() == WITHOUT_PROTOTYPE
    wrong = {name: differences(OPS[name], declared[name]) for name in OPS.keys() & declared.keys()}
    assert {name: what for name, what in wrong.items() if what} == {}
