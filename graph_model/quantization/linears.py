"""Which linears of a model are quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graph_model.config import GemmaConfig
from graph_model.errors import UserError

# Each is a file of this package (`graph_model.quantization.schemes`).
SCHEMES = ("w8a8", "w8a8_dynamic", "w8a16")

HEAD = "lm_head"
# Projections of one input: they are merged, so they are quantized together and share the input's scale.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized.

    scheme: of SCHEMES, see the file of that name. None: no linear is quantized.
    linears: the paths of the quantized ones, in the model's order.
    stored: whether the checkpoint holds the int8 weights; otherwise they are made when weights are loaded.
    kv8: the KV cache is int8, with one scale per token and head.
    """

    scheme: str | None
    linears: tuple[str, ...] = ()
    stored: bool = False
    kv8: bool = False


def linear_paths(config: GemmaConfig) -> tuple[str, ...]:
    """The paths of all linears of the model, in its order; the head is the last."""
    names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layers = range(config.num_hidden_layers)
    return (*(f"model.layers.{index}.{name}" for index in layers for name in names), HEAD)


def select_linears(
    config: GemmaConfig, keep_float: Iterable[str], setting: str = "quant.keep_float"
) -> tuple[str, ...]:
    """The linears that none of `keep_float` names. Raises UserError naming `setting`.

    A name is a path or its end, with * for any text: lm_head, down_proj, model.layers.0.*.
    """
    paths = linear_paths(config)
    kept: set[str] = set()
    for name in keep_float:
        matched = {path for path in paths if fnmatchcase(path, name) or fnmatchcase(path, f"*.{name}")}
        if not matched:
            raise UserError(
                f"{setting}: {name!r} names no linear layer. Names are paths or their ends, such as {paths[0]}, "
                "down_proj, lm_head or model.layers.0.*."
            )
        kept |= matched
    chosen = tuple(path for path in paths if path not in kept)
    split = split_group(chosen)
    if split:
        raise UserError(
            f"{setting}: {', '.join(split)} would be partly quantized. Projections of one input are computed "
            "together: keep all of them in floating point, or none."
        )
    return chosen


def split_group(linears: Iterable[str]) -> tuple[str, ...]:
    """The first group of projections of which some and not all are among `linears`, or ()."""
    chosen = set(linears)
    for path in sorted(chosen):
        group = group_of(path)
        if not chosen.issuperset(group):
            return group
    return ()


def group_of(path: str) -> tuple[str, ...]:
    """The paths that share a linear's input, itself included; the first owns the scale of the input."""
    parent, _, name = path.rpartition(".")
    for group in GROUPS:
        if name in group:
            return tuple(f"{parent}.{member}" for member in group)
    return (path,)
