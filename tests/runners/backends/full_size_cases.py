"""Full-size models on fake tensors: kernels per layer as budgeted, no copies, every bucket legal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support.peak_memory import PeakMemory
from support.standin_cases import A2, DUO, Case, Cases

from graph_model.ascend.legality import check_graph
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.chips.registry import find_soc
from graph_model.config import GEMMA_2B, GEMMA_7B
from graph_model.graph import KVCacheConfig
from graph_model.quantization.linears import Quantization, select_linears
from passes.framework.manager import run_passes
from passes.pipeline import DEFAULT_PASSES
from runners.backends.ascend.lower import lower
from runners.backends.ascend.printer import GraphCounts, count_nodes
from runners.backends.torchair import AscendOptions, kernel_passes

CASES = Cases()
HALF, BRAIN = torch.float16, torch.bfloat16
SIZES = {"2b": GEMMA_2B, "7b": GEMMA_7B}
MOST_MEMORY = 2e9  # bytes, torch and torch_npu included
MOST_SECONDS = 120  # of CPU time that one chip's fast cases may take; both run within four minutes on one core
SPENT: dict[str, float] = {}  # CPU time of the cases that ran, by name


def lowered_counts(
    soc: str,
    config: Any,
    norm: str,
    bucket: Bucket,
    dtype: torch.dtype,
    block_size: int,
    quantization: Quantization | None = None,
) -> Any:
    """Counts of the lowered graph's nodes, and the number of its placeholders."""
    with PeakMemory() as peak:
        graph = capture(config, bucket, KVCacheConfig(4096, block_size), dtype, quantization)
        run_passes(graph, [cls() for cls in DEFAULT_PASSES])
        run_passes(graph, kernel_passes(AscendOptions(find_soc(soc), norm)))
        lowered = lower(graph)
        check_graph(lowered.graph, find_soc(soc))
        counts = count_nodes(lowered.graph)
    assert peak.bytes < MOST_MEMORY, f"{bucket}: {peak.bytes / 1e9:.2f} GB"
    check_lean(counts, bucket)
    return counts, len(graph.graph.find_nodes(op="placeholder"))


def check_lean(counts: GraphCounts, what: object) -> None:
    """Nothing copies a cache or a weight, or turns a tensor round, or waits for the host."""
    copies = {name: count for name, count in counts.copies.items() if count and name != "Cast"}
    assert not copies, f"{what}: {copies}"
    assert counts.weight_copies == 0, f"{what}: {counts.weight_copies} weights are transposed or cast at run time"
    assert counts.host_inputs == 0, f"{what}: {counts.host_inputs} inputs on the host"


def check_kernels(counts: GraphCounts, layers: int, per_layer: int, besides: int) -> None:
    """`per_layer` kernels in each layer, and at most so many besides."""
    others = counts.compute - layers * per_layer
    assert 0 < others <= besides, f"{counts.compute} kernels in {layers} layers: {counts.by_type}"


def register(name: str, soc: str, run: Callable[[], None], slow: bool) -> None:
    def timed(folder: Path) -> None:
        start = time.process_time()
        run()
        SPENT[name] = time.process_time() - start

    CASES[name] = Case(soc, timed, slow)


# Kernels per decoder layer of a decode step. The DUO's rotary embedding is 18 nodes of them (no RotaryMul above a
# head_dim of 128), its exact norms have two casts each, and the 2B's decomposed attention has 12 nodes.
BUDGETS = {
    (A2, "2b", "exact"): 14,
    (A2, "2b", "fused"): 12,
    (A2, "7b", "exact"): 14,
    (A2, "7b", "fused"): 12,
    (DUO, "2b", "exact"): 44,
    (DUO, "2b", "fused"): 38,
    (DUO, "7b", "exact"): 35,
    (DUO, "7b", "fused"): 29,
}
# Kernels besides: embedding, rotary tables, the final norm, the head, the token; of the 2B on the DUO, which gathers
# blocks, a mask and the places of their tokens.
BESIDES = {(A2, "2b"): 15, (A2, "7b"): 15, (DUO, "2b"): 27, (DUO, "7b"): 19}


def check_budget(
    soc: str, config: Any, norm: str, per_layer: int, besides: int, quantization: Quantization | None = None
) -> None:
    """A decode step has the kernels that are budgeted, and its inputs are the graph's placeholders."""
    counts, placeholders = lowered_counts(soc, config, norm, Bucket("decode", 8, 1, 16), HALF, 64, quantization)
    check_kernels(counts, config.num_hidden_layers, per_layer, besides)
    assert counts.inputs == placeholders


def register_budget(soc: str, size: str, norm: str, layers: int | None, slow: bool) -> None:
    """layers: fewer than the model has, where time is short."""
    name = f"budget_{size}_{norm}_on_{soc}" + (f"_of_{layers}_layers" if layers else "")
    config = replace(SIZES[size], num_hidden_layers=layers or SIZES[size].num_hidden_layers)
    per_layer = BUDGETS[soc, size, norm]
    register(name, soc, lambda: check_budget(soc, config, norm, per_layer, BESIDES[soc, size]), slow)


# One of each chip and size; on the DUO the larger one has fewer layers by default.
FAST = {(A2, "7b", "exact"), (A2, "2b", "fused"), (DUO, "2b", "exact")}
for _soc, _size_name, _norm in BUDGETS:
    register_budget(_soc, _size_name, _norm, None, slow=(_soc, _size_name, _norm) not in FAST)
register_budget(DUO, "7b", "exact", 4, slow=False)


# A quantized decode step may have so many kernels per layer more than its floating-point form.
MOST_EXTRA = 2
# How many it has. An int8 cache takes one more, since the kernel that writes keys (or values) also quantizes them;
# w8a8 quantizes in front of the output projection, and saves an addition and a norm's casts where norm=exact has them.
EXTRA = {
    (A2, "w8a8", "exact"): -1,
    (A2, "w8a8", "fused"): 1,
    (A2, "w8a8_dynamic", "exact"): -1,
    (A2, "w8a8_dynamic", "fused"): 1,
    (A2, "w8a16", "exact"): 0,
    (A2, "w8a16", "fused"): 0,
    (A2, "kv8", "exact"): 1,
    (A2, "kv8", "fused"): 1,
    (A2, "w8a8+kv8", "exact"): 0,
    (A2, "w8a8+kv8", "fused"): 2,
    (A2, "w8a8_dynamic+kv8", "exact"): 0,
    (A2, "w8a8_dynamic+kv8", "fused"): 2,
    (A2, "w8a16+kv8", "exact"): 1,
    (A2, "w8a16+kv8", "fused"): 1,
    (DUO, "w8a8", "exact"): -5,
    (DUO, "w8a8", "fused"): 1,
    (DUO, "w8a16", "exact"): 0,
    (DUO, "w8a16", "fused"): 0,
}
# Chunks behind earlier ones read an int8 cache that attention of several query tokens does not take: keys and values
# are gathered with their scales, widened, multiplied and narrowed, where floats are gathered.
EXTRA_OF_EXTEND = 10


def quantized(config: Any, schemes: str, keep_float: list[str] | None = None) -> Quantization:
    """schemes: of the linears, "kv8", or both with a + between. keep_float: None: as conf/quant has it."""
    scheme: Any = schemes.removesuffix("kv8").removesuffix("+") or None
    if keep_float is None:
        keep_float = [] if scheme == "w8a16" else ["down_proj", "lm_head"]
    linears = select_linears(config, keep_float) if scheme else ()
    return Quantization(scheme, linears, stored=scheme == "w8a8", kv8=schemes.endswith("kv8"))


def register_quantized_budget(soc: str, size: str, schemes: str, norm: str, layers: int | None, slow: bool) -> None:
    extra = EXTRA[soc, schemes, norm]
    assert extra <= MOST_EXTRA
    name = f"budget_{size}_{schemes}_{norm}_on_{soc}" + (f"_of_{layers}_layers" if layers else "")
    config = replace(SIZES[size], num_hidden_layers=layers or SIZES[size].num_hidden_layers)
    quantization = quantized(config, schemes)
    besides = BESIDES[soc, size] + 4 + (10 if quantization.kv8 else 0)  # a head in parts; the places of rows
    per_layer = BUDGETS[soc, size, norm] + extra
    register(name, soc, lambda: check_budget(soc, config, norm, per_layer, besides, quantization), slow)


for _soc, _schemes, _norm in EXTRA:
    for _size_name in ("2b", "7b"):
        register_quantized_budget(_soc, _size_name, _schemes, _norm, None, slow=True)
for _soc, _size_name, _schemes, _norm in (
    (A2, "7b", "w8a8+kv8", "fused"),
    (A2, "2b", "w8a8_dynamic+kv8", "exact"),
    (DUO, "7b", "w8a8", "exact"),
):
    register_quantized_budget(_soc, _size_name, _schemes, _norm, 3, slow=False)


def check_quantized_phases(soc: str, config: Any, schemes: str, dtype: torch.dtype, *phases: str) -> None:
    """Each phase lowers to a legal graph that copies nothing and has few kernels more than its float form."""
    buckets = [Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, 16), Bucket("decode", 32, 1, 16)]
    for bucket in buckets:
        if bucket.phase not in phases:
            continue
        plain, _ = lowered_counts(soc, config, "exact", bucket, dtype, 64)
        counts, placeholders = lowered_counts(soc, config, "exact", bucket, dtype, 64, quantized(config, schemes))
        reads_int8 = bucket.phase == "extend" and schemes.endswith("kv8")
        per_layer = MOST_EXTRA + (EXTRA_OF_EXTEND if reads_int8 else 0)
        allowed = per_layer * config.num_hidden_layers + 20  # besides layers: rows to write and to read
        assert counts.compute <= plain.compute + allowed, (bucket, counts, plain.compute)
        assert counts.inputs == placeholders


def register_quantized_phases(
    soc: str, size: str, schemes: str, dtype: torch.dtype, layers: int | None, slow: bool, *phases: str
) -> None:
    config = replace(SIZES[size], num_hidden_layers=layers or SIZES[size].num_hidden_layers)
    name = f"phases_{size}_{schemes}_{dtype}_on_{soc}_of_{layers or 'all'}_layers".replace("torch.", "")
    register(name, soc, lambda: check_quantized_phases(soc, config, schemes, dtype, *phases), slow)


_PHASES = ("prefill", "extend", "decode")
for _soc, _schemes in dict.fromkeys((soc, schemes) for soc, schemes, _ in EXTRA):
    for _size_name, _dtype in (("2b", HALF), ("7b", HALF), ("2b", BRAIN), ("7b", BRAIN)):
        if _soc == A2 or _dtype == HALF:
            register_quantized_phases(_soc, _size_name, _schemes, _dtype, 4, True, *_PHASES)
register_quantized_phases(A2, "7b", "w8a8+kv8", HALF, None, True, "prefill", "extend")
register_quantized_phases(A2, "7b", "w8a8+kv8", BRAIN, 2, False, "prefill", "extend")


def check_head(soc: str, schemes: str, dtype: torch.dtype) -> None:
    """A quantized head of 256,000 rows is legal: as one product of int8, in parts where only its weight is int8."""
    config = replace(GEMMA_7B, num_hidden_layers=1)
    quantization = quantized(config, schemes, ["down_proj"])
    assert "lm_head" in quantization.linears
    counts, _ = lowered_counts(soc, config, "exact", Bucket("decode", 8, 1, 16), dtype, 64, quantization)
    of_head = 1 if schemes == "w8a8" else 4
    layer = 3  # q, k, v in one; output; gate and up in one
    products = {"w8a8": "QuantBatchMatmulV3", "w8a16": "WeightQuantBatchMatmulV2"}[schemes]
    assert counts.by_type[products] == layer + of_head, counts
    assert counts.by_type["MatMulV2"] == 1, counts  # down_proj


for _soc in (A2, DUO):
    for _schemes in ("w8a8", "w8a16"):
        register(f"int8_head_{_schemes}_on_{_soc}", _soc, partial(check_head, _soc, _schemes, HALF), slow=False)


def check_compiles(soc: str, size: str, norm: str, dtype: torch.dtype, block_size: int) -> None:
    """Every phase lowers to a legal and lean graph."""
    width = 1024 // block_size
    buckets = [Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, width), Bucket("decode", 32, 1, width)]
    for bucket in [*buckets, Bucket("decode", 8, 1, width, "sample", 5)]:
        lowered_counts(soc, SIZES[size], norm, bucket, dtype, block_size)


def register_compile(soc: str, size: str, norm: str, dtype: torch.dtype, block_size: int) -> None:
    name = f"every_phase_of_{size}_{norm}_in_{dtype}_with_blocks_of_{block_size}_lowers_on_{soc}"
    name = name.replace("torch.", "")
    register(name, soc, lambda: check_compiles(soc, size, norm, dtype, block_size), slow=True)


for _size_name in ("2b", "7b"):
    for _soc, _dtype in ((A2, HALF), (A2, BRAIN), (DUO, HALF)):
        for _norm, _block_size in (("exact", 16), ("exact", 64), ("exact", 128), ("fused", 64)):
            register_compile(_soc, _size_name, _norm, _dtype, _block_size)


def check_time(soc: str) -> None:
    """All of the chip's fast cases have run before, in this process."""
    fast = [name for name, case in CASES.items() if case.soc == soc and not case.slow and name in TIMED]
    assert fast
    assert fast == [name for name in SPENT if name in fast]
    spent = sum(SPENT[name] for name in fast)
    print(f"{len(fast)} full-size cases on {soc}: {spent:.0f} s of CPU time")
    assert spent < MOST_SECONDS, SPENT


TIMED = tuple(CASES)
for _soc in (A2, DUO):
    CASES[f"full_size_cases_take_at_most_two_minutes_on_{_soc}"] = Case(_soc, lambda folder, soc=_soc: check_time(soc))


if __name__ == "__main__":
    CASES.main()
