"""Read GE graphs from files: the text that torchair dumps (.pbtxt), and the serialized model that the engine takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, GeGraphError, iter_edges, read_graph
from graph_gemma.graph_model.ascend.ge_proto import messages
from graph_gemma.graph_model.errors import UserError


def read_graph_file(path: Path) -> GeGraph:
    """The graph in a file; a name that ends in .pbtxt says that it is text. Needs protobuf, not torch_npu.

    Raises UserError where the file cannot be read, holds no GE graph, or only a part of one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"graph: {path} cannot be read ({error.strerror}). Name a dumped graph.") from None
    try:
        graph = read_graph(from_pbtxt(content)) if path.suffix == ".pbtxt" else read_model(content)
        names = graph.by_name()
        for node in (graph.net_output(), *graph.nodes):
            for producer, index in iter_edges(node):
                if producer not in names or index >= len(names[producer].outputs):
                    raise GeGraphError(f"{node.type} {node.name} reads {producer}:{index}, which is not in the file")
    except GeGraphError as error:
        raise UserError(
            f"graph: {path} is not a whole GE graph: {error}. Give a lowered.pbtxt that dump_dir wrote, a graph that "
            "torchair dumped as pbtxt, or the folder that holds one."
        ) from None
    return graph


def from_pbtxt(content: bytes) -> Any:
    """The GraphDef in torchair's text of it."""
    types = messages()
    graph = types.GraphDef()
    known: dict[bytes, Any] = {}  # a graph says the same things many times, and parsing is slow

    def fill(message: Any, text: bytes) -> None:
        if text not in known:
            known[text] = _parse(text, type(message)())
        message.CopyFrom(known[text])

    for node in _parse(content, types.PbtxtGraph()).node:
        op = graph.op.add(name=node.name, type=node.op)
        op.input.extend(f"{name[1:]}:-1" if name.startswith("^") else name for name in node.input)
        for attr in node.attr:
            if attr.key.startswith("[i]"):
                fill(op.input_desc.add(), attr.value.s)
            elif attr.key.startswith("[o]"):
                fill(op.output_desc.add(), attr.value.s)
            else:
                fill(op.attr[attr.key], attr.value.s)
    # The text leaves out the graph's own attributes; of those, inputs tell where they are placed.
    inputs = sorted((op for op in graph.op if op.type == "Data"), key=lambda op: op.attr["index"].i)
    on_device = [all(desc.device_type != "CPU" for desc in op.output_desc) for op in inputs]
    graph.attr["_input_placements"].list.i.extend(map(int, on_device))
    return graph


def read_model(content: bytes) -> GeGraph:
    """The one graph in a serialized ModelDef. Raises GeGraphError; UserError where protobuf is not installed."""
    model = messages().ModelDef()
    from google.protobuf.message import DecodeError

    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise GeGraphError(f"it cannot be decoded ({error})") from None
    if len(model.graph) != 1:
        raise GeGraphError(f"it holds {len(model.graph)} graphs")
    return read_graph(model.graph[0])


def _parse(text: bytes, message: Any) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text.decode(), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise GeGraphError(str(error)) from None
