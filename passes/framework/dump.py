"""A graph as text that a person reads top to bottom, equal from run to run."""

from __future__ import annotations

import torch
from torch import fx

from graph_gemma.graph_model.graph import Kind, ModelGraph
from graph_gemma.passes.framework.contract import describe_target

_DTYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "b8",
}


def dump(graph: ModelGraph, title: str, note: str = "") -> str:
    """The graph's weights with their expressions, caches, inputs, and its calls grouped by the model's layers.

    note: a further line of the heading.
    """
    lines = [f"# {title}", f"# bucket {graph.bucket}, {len(graph.calls())} calls", *([f"# {note}"] if note else []), ""]
    kinds: tuple[Kind, ...] = ("weight", "cache", "input")
    for kind in kinds:
        placeholders = graph.placeholders(kind)
        if placeholders:
            lines.append(f"{kind}s:")
            lines += [f"    {_declaration(node)}" for node in placeholders]
            lines.append("")
    layer = None
    for node in graph.calls():
        if node.meta["layer"] != layer:
            layer = node.meta["layer"]
            lines.append(f"{layer or 'step'}:")
        lines.append(f"    {node.name}: {type_text(node.meta['val'])} = {_call(node)}")
    lines += ["", f"return {_text(graph.outputs)}", ""]
    return "\n".join(lines)


def type_text(value: object) -> str:
    """dtype and shape of a fake value: bf16[2, 64]."""
    if isinstance(value, torch.Tensor):
        return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(type_text(v) for v in value)})"
    return type(value).__name__


def _declaration(node: fx.Node) -> str:
    text = f"{node.name}: {type_text(node.meta['val'])}"
    return f"{text} = {node.meta['expression']}" if "expression" in node.meta else text


def _call(node: fx.Node) -> str:
    arguments = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
    if getattr(node.target, "__name__", "") == "getitem":
        return f"{arguments[0]}[{arguments[1]}]"
    return f"{describe_target(node.target)}({', '.join(arguments)})"


def _text(value: object) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening + ", ".join(_text(v) for v in value) + closing
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else repr(value)
