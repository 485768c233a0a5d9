"""The pipeline: the passes of a step in their order, and how settings choose among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.add_rms_norm import AddRMSNorm
from graph_gemma.passes.ascend.matmul_all_reduce import AscendMatmulAllReduce
from graph_gemma.passes.canonicalize import Canonicalize
from graph_gemma.passes.fold_dequantize import FoldDequantize
from graph_gemma.passes.fold_inv_freq import FoldInvFreq
from graph_gemma.passes.fold_quantize import FoldQuantize
from graph_gemma.passes.framework.contract import Pass, out_of_order
from graph_gemma.passes.gelu_and_mul import GeluAndMul
from graph_gemma.passes.insert_quantization import InsertQuantization
from graph_gemma.passes.last_token import LastToken
from graph_gemma.passes.merge_projections import MergeGateUp, MergeQKV
from graph_gemma.passes.paged_attention import PagedAttention
from graph_gemma.passes.quantize_cache import QuantizeCache
from graph_gemma.passes.rms_norm import RMSNorm
from graph_gemma.passes.rotary import Rotary
from graph_gemma.passes.scale_residual import ScaleResidual
from graph_gemma.passes.select_token import SelectToken
from graph_gemma.passes.shard_tensor_parallel import ShardTensorParallel
from graph_gemma.passes.shard_token_selection import ShardTokenSelection
from graph_gemma.passes.softcap import Softcap

DEFAULT_PASSES: tuple[type[Pass], ...] = (
    Canonicalize,
    FoldInvFreq,
    RMSNorm,
    ScaleResidual,
    Rotary,
    MergeQKV,
    MergeGateUp,
    GeluAndMul,
    PagedAttention,
    Softcap,
    LastToken,
    QuantizeCache,
    InsertQuantization,
    FoldDequantize,
    AddRMSNorm,
    FoldQuantize,
    SelectToken,
)
PASSES: dict[str, type[Pass]] = {cls.name: cls for cls in DEFAULT_PASSES}
# What may follow the passes by which a backend selects its kernels; off unless the config switches it on.
KERNEL_OPTIONS: dict[str, type[Pass]] = {AscendMatmulAllReduce.name: AscendMatmulAllReduce}


def described() -> dict[str, tuple[str, dict[str, Any]]]:
    """Of every pass that a config may name: what it does, and its options where nothing is given, `enabled` first."""
    found = {}
    for name, cls in {**PASSES, **KERNEL_OPTIONS}.items():
        about = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
        options = {field.name: field.default for field in dataclasses.fields(cls)}
        about = f"{about} Cannot be left out." if cls.required else about
        found[name] = about, {"enabled": name in PASSES, **options}
    return found


def build_passes(settings: Mapping[str, Mapping[str, Any]], shard: Shard | None = None) -> list[Pass]:
    """The passes that the config lists, in its order: name -> {enabled, options...}. Raises UserError.

    settings: passes and options that there are, as the settings are checked before they come here.
    shard: the rank to build for, where several share the model; the passes that share it are added.
    """
    passes = [each for each in _build(settings) if each.name in PASSES]
    missing = [cls.name for cls in DEFAULT_PASSES if cls.required and cls.name not in {p.name for p in passes}]
    if missing:
        raise UserError(
            f"passes.{missing[0]}: this pass cannot be switched off, no backend runs a graph without it. "
            f"Leave passes.{missing[0]}.enabled=true."
        )
    if wrong := out_of_order(passes):
        early, late = (each.name for each in wrong)
        raise UserError(
            f"passes.{early} stands before passes.{late}, and must come after it. "
            f"Give the passes in this order: {', '.join(PASSES)}."
        )
    return passes if shard is None or shard.world_size == 1 else _add_sharding(passes, shard)


def build_kernel_options(settings: Mapping[str, Mapping[str, Any]]) -> list[Pass]:
    """The passes that the config switches on to follow those of the backend. Raises UserError."""
    return [each for each in _build(settings) if each.name in KERNEL_OPTIONS]


def _build(settings: Mapping[str, Mapping[str, Any]]) -> list[Pass]:
    passes = []
    for name, given in settings.items():
        cls = {**PASSES, **KERNEL_OPTIONS}[name]
        if given.get("enabled", True):
            passes.append(cls(**{option: value for option, value in given.items() if option != "enabled"}))
    return passes


def _add_sharding(passes: list[Pass], shard: Shard) -> list[Pass]:
    """Share the model as soon as its ops have one spelling, so that all other passes see one rank's part."""
    added: dict[type[Pass], Pass] = {Canonicalize: ShardTensorParallel(shard), SelectToken: ShardTokenSelection()}
    return [p for given in passes for p in (given, added.get(type(given))) if p is not None]
