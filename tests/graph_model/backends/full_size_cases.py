"""Full-size models on fake tensors: kernels per layer as budgeted, no copies, every bucket legal."""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import Any

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support.standin_cases import A2, DUO, Case, Cases

from graph_model.ascend.legality import check_graph
from graph_model.ascend.listing import count_nodes
from graph_model.ascend.lower import lower
from graph_model.ascend.soc import find_soc
from graph_model.backends.torchair import AscendOptions, kernel_passes
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.config import GEMMA_2B, GEMMA_7B
from graph_model.graph import Pages
from graph_model.quantisation import Quantisation, select_linears
from passes.manager import DEFAULT_PASSES, run_passes

CASES = Cases()
HALF, BRAIN = torch.float16, torch.bfloat16
SIZES = {"2b": GEMMA_2B, "7b": GEMMA_7B}


def lowered_counts(
    soc: str,
    config: Any,
    norm: str,
    bucket: Bucket,
    dtype: torch.dtype,
    block_size: int,
    quantisation: Quantisation | None = None,
) -> Any:
    """Counts of the lowered graph's nodes, and its input names."""
    graph = capture(config, bucket, Pages(4096, block_size), dtype, quantisation)
    run_passes(graph, [cls() for cls in DEFAULT_PASSES])
    run_passes(graph, kernel_passes(AscendOptions(find_soc(soc), norm)))
    lowered = lower(graph)
    check_graph(lowered.graph, find_soc(soc))
    return count_nodes(lowered.graph), len(graph.graph.find_nodes(op="placeholder"))


# Kernels per decoder layer of a decode step. The DUO's rotary embedding is 18 nodes of them (no RotaryMul above a
# head_dim of 128), its exact norms have two casts each, and the 2B's decomposed attention has 13 nodes.
BUDGETS = {
    (A2, "2b", "exact"): 14,
    (A2, "2b", "fused"): 12,
    (A2, "7b", "exact"): 14,
    (A2, "7b", "fused"): 12,
    (DUO, "2b", "exact"): 45,
    (DUO, "2b", "fused"): 39,
    (DUO, "7b", "exact"): 35,
    (DUO, "7b", "fused"): 29,
}
# Kernels besides: embedding, rotary tables, the final norm, the head, the token; on the DUO masks.
BESIDES = {A2: 15, DUO: 19}


def check_budget(
    soc: str, config: Any, norm: str, per_layer: int, besides: int, quantisation: Quantisation | None = None
) -> None:
    """A decode step has `per_layer` kernels in each layer and at most so many besides, and copies nothing."""
    counts, placeholders = lowered_counts(soc, config, norm, Bucket("decode", 8, 1, 16), HALF, 64, quantisation)
    others = counts.compute - config.num_hidden_layers * per_layer
    assert 0 < others <= besides, f"{counts.compute} kernels in {config.num_hidden_layers} layers: {counts.by_type}"
    assert counts.copies["TensorMove"] == counts.copies["Assign"] == counts.copies["Transpose"] == 0, counts
    assert counts.weight_copies == counts.host_inputs == 0, counts
    assert counts.inputs == placeholders
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < 2e9, peak


def register_budget(soc: str, size: str, norm: str, layers: int | None, slow: bool) -> None:
    """layers: fewer than the model has, where time is short."""
    name = f"budget_{size}_{norm}_on_{soc}" + (f"_of_{layers}_layers" if layers else "")
    config = replace(SIZES[size], num_hidden_layers=layers or SIZES[size].num_hidden_layers)
    per_layer = BUDGETS[soc, size, norm]
    CASES[name] = Case(soc, lambda folder: check_budget(soc, config, norm, per_layer, BESIDES[soc]), slow)


for _soc, _size_name, _norm in BUDGETS:
    register_budget(_soc, _size_name, _norm, None, slow=(_soc, _size_name, _norm) != (A2, "7b", "exact"))
register_budget(A2, "2b", "fused", 4, slow=False)
for _size_name in ("2b", "7b"):
    register_budget(DUO, _size_name, "exact", 4, slow=False)


# Two kernels per layer above floating point are allowed; norm and quantise in one saves some. An int8 cache takes four:
# DynamicQuant and a write of scales, for keys and for values.
QUANTISED_BUDGETS = {
    (A2, "w8a8", "exact"): 13,
    (A2, "w8a8", "fused"): 13,
    (A2, "w8a8_dynamic", "exact"): 13,
    (A2, "w8a16", "exact"): 14,
    (A2, "kv8", "exact"): 18,
    (A2, "w8a8+kv8", "exact"): 17,
    (A2, "w8a8+kv8", "fused"): 17,
    (A2, "w8a8_dynamic+kv8", "exact"): 17,
    (A2, "w8a16+kv8", "exact"): 18,
    (DUO, "w8a8", "exact"): 30,
    (DUO, "w8a16", "exact"): 35,
}


def register_quantised_budget(soc: str, schemes: str, norm: str, layers: int, slow: bool) -> None:
    name = f"budget_7b_{schemes}_{norm}_on_{soc}" + ("" if slow else f"_of_{layers}_layers")
    config = replace(GEMMA_7B, num_hidden_layers=layers)
    scheme: Any = schemes.removesuffix("kv8").removesuffix("+") or None
    keep_float = [] if scheme == "w8a16" else ["down_proj", "lm_head"]
    linears = select_linears(config, keep_float) if scheme else ()
    quantisation = Quantisation(scheme, linears, stored=scheme == "w8a8", kv8=schemes.endswith("kv8"))
    places_of_scales = 8 if quantisation.kv8 else 0
    per_layer, besides = QUANTISED_BUDGETS[soc, schemes, norm], BESIDES[soc] + 4 + places_of_scales
    CASES[name] = Case(soc, lambda folder: check_budget(soc, config, norm, per_layer, besides, quantisation), slow)


for _soc, _schemes, _norm in QUANTISED_BUDGETS:
    register_quantised_budget(_soc, _schemes, _norm, GEMMA_7B.num_hidden_layers, slow=True)
for _soc, _schemes in ((A2, "w8a8+kv8"), (A2, "w8a8_dynamic"), (DUO, "w8a8")):
    register_quantised_budget(_soc, _schemes, "exact", 3, slow=False)


def check_compiles(soc: str, size: str, dtype: torch.dtype) -> None:
    """Every phase and block size lowers to a legal graph that copies no weight and no cache."""
    for block_size in (16, 64, 128):
        width = 1024 // block_size
        buckets = [Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, width), Bucket("decode", 32, 1, width)]
        for bucket in [*buckets, Bucket("decode", 8, 1, width, "sample", 5)]:
            counts, _ = lowered_counts(soc, SIZES[size], "exact", bucket, dtype, block_size)
            assert counts.copies["TensorMove"] == counts.copies["Assign"] == 0, (bucket, counts)
            assert counts.weight_copies == counts.host_inputs == 0, (bucket, counts)


def register_compile(soc: str, size: str, dtype: torch.dtype) -> None:
    name = f"every_bucket_of_{size}_in_{dtype}_lowers_on_{soc}".replace("torch.", "")
    CASES[name] = Case(soc, lambda folder: check_compiles(soc, size, dtype), slow=True)


for _size_name in ("2b", "7b"):
    for _soc, _dtype in ((A2, HALF), (A2, BRAIN), (DUO, HALF)):
        register_compile(_soc, _size_name, _dtype)
