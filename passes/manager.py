"""The pass manager: runs the configured passes and enforces the contract after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from graph_model import ops
from graph_model.errors import UserError
from graph_model.graph import ModelGraph
from graph_model.shard import Shard
from passes.add_rms_norm import AddRMSNorm
from passes.ascend_matmul_all_reduce import AscendMatmulAllReduce
from passes.attributes import check_attributes
from passes.canonicalise import Canonicalise
from passes.contract import Outcome, Pass, PassError, describe_target
from passes.dump import dump
from passes.fold_dequantise import FoldDequantise
from passes.fold_inv_freq import FoldInvFreq
from passes.fold_quantise import FoldQuantise
from passes.gelu_and_mul import GeluAndMul
from passes.insert_quantization import InsertQuantization
from passes.last_token import LastToken
from passes.merge_projections import MergeGateUp, MergeQKV
from passes.paged_attention import PagedAttention
from passes.quantize_cache import QuantizeCache
from passes.rms_norm import RMSNorm
from passes.rotary import Rotary
from passes.select_token import SelectToken
from passes.shard_tensor_parallel import ShardTensorParallel
from passes.shard_token_selection import ShardTokenSelection

aten = torch.ops.aten

DEFAULT_PASSES: tuple[type[Pass], ...] = (
    Canonicalise,
    FoldInvFreq,
    RMSNorm,
    Rotary,
    MergeQKV,
    MergeGateUp,
    GeluAndMul,
    PagedAttention,
    LastToken,
    QuantizeCache,
    InsertQuantization,
    FoldDequantise,
    AddRMSNorm,
    FoldQuantise,
    SelectToken,
)
PASSES: dict[str, type[Pass]] = {cls.name: cls for cls in DEFAULT_PASSES}
# What may follow the passes by which a backend selects its kernels; off unless the config switches it on.
KERNEL_OPTIONS: dict[str, type[Pass]] = {AscendMatmulAllReduce.name: AscendMatmulAllReduce}

# What may stand in a graph from the first pass on. An op outside this list has no meaning that a backend agreed to.
VOCABULARY = frozenset(
    {
        aten.add.Tensor,
        aten.arange.start_step,
        aten.cat.default,
        aten.cos.default,
        aten.div.Tensor,
        aten.embedding.default,
        aten.gelu.default,
        aten.linear.default,
        aten.mean.dim,
        aten.mul.Tensor,
        aten.neg.default,
        aten.pow.Scalar,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.reshape.default,
        aten.rsqrt.default,
        aten.scaled_dot_product_attention.default,
        aten.select.int,
        aten.sin.default,
        aten.slice.Tensor,
        aten.split_with_sizes.default,
        aten.to.dtype,
        aten.transpose.int,
        aten.unsqueeze.default,
    }
)

Observer = Callable[[Pass, ModelGraph, ModelGraph], None]


def build_passes(settings: Mapping[str, Mapping[str, Any]], shard: Shard | None = None) -> list[Pass]:
    """The passes that the config lists, in its order: name -> {enabled, options...}. Raises UserError.

    shard: the rank to build for, where several share the model; the passes that share it are added.
    """
    passes = [each for each in _build(settings) if each.name in PASSES]
    missing = [cls.name for cls in DEFAULT_PASSES if cls.required and cls.name not in {p.name for p in passes}]
    if missing:
        raise UserError(
            f"passes.{missing[0]}: this pass cannot be switched off, no backend runs a graph without it. "
            f"Leave passes.{missing[0]}.enabled=true."
        )
    return passes if shard is None or shard.world_size == 1 else _add_sharding(passes, shard)


def build_kernel_options(settings: Mapping[str, Mapping[str, Any]]) -> list[Pass]:
    """The passes that the config switches on to follow those of the backend. Raises UserError."""
    return [each for each in _build(settings) if each.name in KERNEL_OPTIONS]


def _build(settings: Mapping[str, Mapping[str, Any]]) -> list[Pass]:
    known_passes = {**PASSES, **KERNEL_OPTIONS}
    passes = []
    for name, options in settings.items():
        cls = known_passes.get(name)
        if cls is None:
            raise UserError(f"passes.{name}: there is no such pass. The passes are {', '.join(known_passes)}.")
        if not isinstance(options, Mapping):
            raise UserError(
                f"passes.{name} is {options!r}; it must hold the pass's options. To leave the pass out, "
                f"set passes.{name}.enabled=false."
            )
        options = dict(options)
        enabled = options.pop("enabled", True)
        if not isinstance(enabled, bool):
            raise UserError(f"passes.{name}.enabled is {enabled!r}; it must be true or false.")
        known = {field.name for field in dataclasses.fields(cls)}
        if options.keys() - known:
            unknown = sorted(options.keys() - known)
            raise UserError(f"passes.{name}: unknown option {unknown[0]!r}; it has {sorted(known | {'enabled'})}.")
        if enabled:
            passes.append(cls(**options))
    return passes


def _add_sharding(passes: list[Pass], shard: Shard) -> list[Pass]:
    """Share the model as soon as its ops have one spelling, so that all other passes see one rank's part."""
    added: dict[type[Pass], Pass] = {Canonicalise: ShardTensorParallel(shard), SelectToken: ShardTokenSelection()}
    return [p for given in passes for p in (given, added.get(type(given))) if p is not None]


def run_passes(
    graph: ModelGraph,
    passes: Sequence[Pass],
    dump_dir: Path | None = None,
    observe: Observer | None = None,
    dump_note: str = "",
) -> None:
    """Rewrite `graph` in place, checking each pass's contract.

    dump_dir: where a text of the graph is written before the first pass and after each, headed by `dump_note` too.
    observe: called with the pass, the graph before it and the graph after it.
    Raises PassError when a pass matches less or more than the model calls for, leaves an op that it should have
    removed, introduces an op outside the vocabulary, or loses an attribute of the model.
    """
    passes = [graph_pass for graph_pass in passes if graph_pass.applies(graph)]
    _write(dump_dir, 0, "capture", graph, "captured", dump_note)
    for index, graph_pass in enumerate(passes, start=1):
        before = graph.copy() if observe else None
        expected = graph_pass.expected_matches(graph)
        outcome = graph_pass.apply(graph)
        introduced = frozenset(op for earlier in passes[:index] for op in earlier.introduces)
        _check_contract(graph, graph_pass, expected, outcome, introduced)
        title = f"after {graph_pass.name} ({graph_pass.tier.value}, {outcome.matches} matches)"
        _write(dump_dir, index, graph_pass.name, graph, title, dump_note)
        if observe and before:
            observe(graph_pass, before, graph)


def _check_contract(
    graph: ModelGraph, graph_pass: Pass, expected: int, outcome: Outcome, introduced: frozenset[str]
) -> None:
    name = graph_pass.name
    if outcome.matches != expected:
        nearest = "; ".join(outcome.near_misses[:3]) or "there was no candidate"
        raise PassError(
            f"{name} matched {outcome.matches} times, expected {expected} for bucket {graph.bucket}. "
            f"Nearest misses: {nearest}"
        )
    left = graph.calls(*graph_pass.removes) if graph_pass.removes else []
    if left:
        raise PassError(f"{name} left {left[0].name}, a call of {describe_target(left[0].target)}, in the graph")
    for node in graph.calls():
        known = node.target in VOCABULARY or ops.is_canonical(node.target)
        known = known or describe_target(node.target) in introduced
        if not known and getattr(node.target, "__name__", "") != "getitem":
            raise PassError(f"after {name}: {node.name} calls {describe_target(node.target)}, which is no op of a step")
    check_attributes(graph, name)


def _write(dump_dir: Path | None, index: int, name: str, graph: ModelGraph, title: str, note: str) -> None:
    if dump_dir is not None:
        folder = dump_dir / str(graph.bucket)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}_{name}.txt").write_text(dump(graph, title, note), encoding="utf-8")
