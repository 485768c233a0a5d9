"""Cut the ops of a lowered step out into graphs of their own, with the inputs that the step gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES, PROTO_DTYPES, Node, read_graph
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.backends.ascend.lower import LoweredStep
from graph_gemma.runners.backends.ascend.printer import is_collective, writers

_PROTO = {dtype: number for number, dtype in PROTO_DTYPES.items()}
_GE = {dtype: number for number, dtype in GE_DTYPES.items()}


@dataclass(frozen=True)
class SingleOp:
    """A graph of one op."""

    step: str  # the name of the step that it was cut from
    node: Node
    serialized: bytes  # its ge.proto.ModelDef
    data: tuple[Tensor, ...]  # the tensors of its Data nodes, in order
    arguments: dict[str, Any]  # all inputs of the op by name, constants and lists of dynamic inputs included
    outputs: tuple[int, ...]  # which of the op's outputs the graph returns

    @property
    def key(self) -> str:
        """What tells it from other cases of the op type: attributes, dtypes, shapes."""
        parts = [f"{name}={value}" for name, value in sorted(self.node.attrs.items()) if not name.startswith("_")]
        for name, value in self.arguments.items():
            values = value if isinstance(value, list) else [value]
            parts += [f"{name}={str(v.dtype).removeprefix('torch.')}{list(v.shape)}" for v in values]
        return f"{self.node.type}({', '.join(parts)})"


def cut_out_ops(lowered: LoweredStep, arguments: Sequence[Tensor], step: str) -> dict[str, SingleOp]:
    """The ops of a step that is run by the interpreter on host tensors of its placeholders, each distinct case once.

    Collectives, which need several devices, are left out. Caches among `arguments` are written. step: its name.
    """
    model = lowered.concrete.graph._model
    graph = read_graph(model.graph[0])
    protos = {op.name: op for op in model.graph[0].op}
    tensors = lowered.as_read([argument.detach() for argument in arguments])
    known: dict[tuple[str, int], Tensor] = {}
    written = writers(graph)
    for node, tensor in zip(graph.inputs(), tensors, strict=True):
        known[node.name, 0] = tensor.clone() if node.name in written else tensor
    known.update({(node.name, 0): node.attrs["value"] for node in graph.nodes if node.type == "Const"})
    found: dict[str, SingleOp] = {}

    def observe(node: Node, values: Sequence[Tensor]) -> None:
        by_reference = OPS[node.type].by_reference
        if not is_collective(node.type):
            single = _single_op(step, model, protos, node, known, values)
            if single is not None:
                found.setdefault(single.key, single)
        kept = {i: v.clone() if i in by_reference or node.name in written else v for i, v in enumerate(values)}
        known.update({(node.name, i): value for i, value in kept.items()})

    Program(graph).run(tensors, observe)
    return found


def _single_op(
    step: str,
    model: Any,
    protos: dict[str, Any],
    node: Node,
    known: dict[tuple[str, int], Tensor],
    values: Sequence[Tensor],
) -> SingleOp | None:
    """The op's case; None where nothing of its results is declared, so that nothing can be compared."""
    outputs = tuple(i for i, desc in enumerate(node.outputs) if desc.dtype is not None and values[i].numel())
    if not outputs:
        outputs = tuple(i for i, value in enumerate(values) if value.numel())[:1]
    single = type(model)()
    graph = single.graph.add()
    graph.name = f"single_{node.name}"
    op = protos[node.name]
    own = type(op)()
    own.CopyFrom(op)
    del own.input[:]
    template = next(proto for proto in protos.values() if proto.type == "Data")
    data: list[Tensor] = []
    sources: dict[tuple[str, int], str] = {}
    arguments: dict[str, Any] = {}
    for position, edge in enumerate(node.inputs):
        source = (edge.producer, edge.index)
        if not edge.producer:
            own.input.append("")
            continue
        value = known[source]
        _add_argument(arguments, node.type, edge.name, value)
        if source not in sources:
            producer = protos[edge.producer]
            if producer.type == "Const":
                graph.op.add().CopyFrom(producer)
                sources[source] = f"{edge.producer}:0"
            else:
                graph.op.add().CopyFrom(_data(template, len(data), value))
                sources[source] = f"data{len(data)}:0"
                data.append(value.contiguous().clone())
        own.input.append(sources[source])
        _describe(own.input_desc[position], value)
    for index in outputs:
        _describe(own.output_desc[index], values[index])
    graph.op.add().CopyFrom(own)
    template = next(proto for proto in protos.values() if proto.type == "NetOutput")
    graph.op.add().CopyFrom(_net_output(template, node.name, outputs, values))
    graph.attr["_output_dtypes"].list.i.extend(_GE[values[i].dtype] for i in outputs)
    graph.attr["_input_placements"].list.i.extend([1] * len(data))
    graph.attr["_executor_type"].CopyFrom(model.graph[0].attr["_executor_type"])
    return SingleOp(step, node, single.SerializeToString(), tuple(data), arguments, outputs)


def _add_argument(arguments: dict[str, Any], op_type: str, name: str, value: Tensor) -> None:
    """Members of dynamic inputs (x0, x1, ...) are gathered under their common name."""
    dynamic = {n for n, kind in OPS[op_type].inputs if kind == "dynamic"}
    common = name.rstrip("0123456789")
    if common in dynamic:
        arguments.setdefault(common, []).append(value.clone())
    else:
        arguments[name] = value.clone()


def _data(template: Any, index: int, value: Tensor) -> Any:
    op = type(template)()
    op.CopyFrom(template)
    op.name = f"data{index}"
    op.attr["index"].i = index
    for desc in (*op.input_desc, *op.output_desc):
        _describe(desc, value)
    return op


def _net_output(template: Any, producer: str, outputs: Sequence[int], values: Sequence[Tensor]) -> Any:
    op = type(template)()
    op.CopyFrom(template)
    for field in (op.input, op.input_desc, op.attr["_input_name_key"].list.s, op.attr["_input_name_value"].list.i):
        del field[:]
    for position, index in enumerate(outputs):
        op.input.append(f"{producer}:{index}")
        desc = op.input_desc.add()
        desc.name, desc.layout = f"input{position}", "ND"
        _describe(desc, values[index])
        op.attr["_input_name_key"].list.s.append(desc.name.encode())
        op.attr["_input_name_value"].list.i.append(position)
    return op


def _describe(desc: Any, value: Tensor) -> None:
    """Let a tensor's descriptor say `value`'s dtype and shape, and nothing of the graph that it came from."""
    desc.dtype = _PROTO[value.dtype]
    del desc.shape.dim[:]
    desc.shape.dim.extend(value.shape)
    meta = f"Tensor(dtype={value.dtype}, shape={value.shape}"
    desc.attr["_meta"].s = f"{meta})".encode()
    if "_fx_tensor_name" in desc.attr:
        del desc.attr["_fx_tensor_name"]
