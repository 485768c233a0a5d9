"""Which linears of a model are quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import Family, family_of

# Each is a file of this package (`graph_model.quantization.schemes`).
SCHEMES = ("w8a8", "w8a8_dynamic", "w8a16")

HEAD = Family.head_path


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized."""

    scheme: str | None  # of SCHEMES, see the file of that name; None: no linear is quantized
    linears: tuple[str, ...] = ()  # paths of the quantized ones, in the model's order
    stored: bool = False  # whether the checkpoint has the int8 weights; otherwise they are made at load
    kv8: bool = False  # the KV cache is int8, with one scale per token and head


def linear_paths(config: GemmaConfig) -> tuple[str, ...]:
    """The paths of all linears of the model, in its order; the head is the last."""
    return tuple(family_of(config).linears)


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
                f"{paths[-2].rpartition('.')[2]}, {HEAD} or {family_of(config).layer_path(0)}.*."
            )
        kept |= matched
    chosen = tuple(path for path in paths if path not in kept)
    split = split_group(config, chosen)
    if split:
        raise UserError(
            f"{setting}: {', '.join(split)} would be partly quantized. Projections of one input are computed "
            "together: keep all of them in floating point, or none."
        )
    return chosen


def split_group(config: GemmaConfig, linears: Iterable[str]) -> tuple[str, ...]:
    """The first group of linears of one input of which some and not all are among `linears`, or ()."""
    chosen = set(linears)
    for group in family_of(config).groups:
        if chosen.intersection(group.paths) and not chosen.issuperset(group.paths):
            return group.paths
    return ()
