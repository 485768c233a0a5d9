"""Full-size models on fake tensors: kernels per layer as budgeted, no copies, every bucket legal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.ascend_budgets import BESIDES, BUDGETS, check_kernels, check_lean
from support.chip_processes import A2, DUO, on_each_chip
from support.peak_memory import PeakMemory

from graph_gemma.graph_model.ascend.legality import check_graph
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, NAMED_CONFIGS, GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.printer import count_nodes
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes

pytestmark = pytest.mark.chip
HALF, BRAIN = torch.float16, torch.bfloat16
SIZES = {"2b": GEMMA_2B, "7b": GEMMA_7B}
MOST_MEMORY = 2e9  # bytes, torch and torch_npu included
MOST_SECONDS = 120  # of CPU time that one chip's fast tests may take; both run within four minutes on one core


@pytest.fixture(scope="module")
def spent() -> Iterator[list[float]]:
    """CPU time of a chip's tests that are not slow, which is limited."""
    seconds: list[float] = []
    yield seconds
    assert sum(seconds) < MOST_SECONDS, seconds


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest, spent: list[float]) -> Iterator[None]:
    start = time.process_time()
    yield
    if request.node.get_closest_marker("slow") is None:
        spent.append(time.process_time() - start)


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


def check_budget(
    soc: str, config: Any, norm: str, per_layer: int, besides: int, quantization: Quantization | None = None
) -> None:
    """A decode step has the kernels that are budgeted, and its inputs are the graph's placeholders."""
    counts, placeholders = lowered_counts(soc, config, norm, Bucket("decode", 8, 1, 16), HALF, 64, quantization)
    check_kernels(counts, config.num_hidden_layers, per_layer, besides)
    assert counts.inputs == placeholders


def few_layers(size: str, layers: int | None) -> GemmaConfig:
    """layers: fewer than the model has, where time is short."""
    return replace(SIZES[size], num_hidden_layers=layers or SIZES[size].num_hidden_layers)


def case(soc: str, size: str, *others: object, layers: int | None = None, slow: bool = True) -> object:
    marks = [pytest.mark.slow] if slow else []
    names = [soc, size, *(str(other).removeprefix("torch.") for other in others), f"{layers or 'all'} layers"]
    return pytest.param(soc, size, *others, layers, marks=marks, id="-".join(names))


# One of each chip and size by default; on the DUO the larger one has fewer layers.
FAST = {(A2, "7b", "exact"), (A2, "2b", "fused"), (DUO, "2b", "exact")}


@pytest.mark.parametrize(
    ("soc", "size", "norm", "layers"),
    [*(case(*key, slow=key not in FAST) for key in BUDGETS), case(DUO, "7b", "exact", layers=4, slow=False)],
)
def test_a_decode_step_has_the_budgeted_kernels(soc: str, size: str, norm: str, layers: int | None) -> None:
    check_budget(soc, few_layers(size, layers), norm, BUDGETS[soc, size, norm], BESIDES[soc, size])


# Kernels per layer of a decode step. Gemma 3 has two norms of branches and two of heads more than Gemma 1; Gemma 2 two
# of branches, and attention is written out, as no kernel has a soft-cap.
LATER = {
    (A2, "gemma3_1b", "exact"): 18,
    (A2, "gemma3_1b", "fused"): 16,
    (A2, "gemma2_2b", "exact"): 29,
    (DUO, "gemma3_1b", "exact"): 56,
}
# Besides: two rotary tables, the window's blocks, masks and places of tokens.
LATER_BESIDES = 64


@pytest.mark.parametrize(("soc", "size", "norm"), [pytest.param(*key, id="-".join(key)) for key in LATER])
def test_a_decode_step_with_windows_has_the_budgeted_kernels(soc: str, size: str, norm: str) -> None:
    config = NAMED_CONFIGS[size].of_layers([0, 1, 5])
    check_budget(soc, config, norm, LATER[soc, size, norm], LATER_BESIDES)


@pytest.mark.slow
@pytest.mark.chip(A2)
@pytest.mark.parametrize("size", [name for name in NAMED_CONFIGS if name.startswith(("gemma2", "gemma3"))])
def test_whole_later_models_are_lowered_in_little_memory(size: str) -> None:
    buckets = [Bucket("decode", 1, 1, 128), Bucket("extend", 1, 512, 16)]
    for bucket in buckets[: 1 if size.startswith("gemma2") else 2]:  # heads of Gemma 2 are turned round for prompts
        counts, _ = lowered_counts(A2, NAMED_CONFIGS[size], "exact", bucket, BRAIN, 128)
        assert counts.compute > 16 * NAMED_CONFIGS[size].num_hidden_layers


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
# Chunks after earlier ones read an int8 cache that attention of several query tokens does not take: keys and values
# are gathered with their scales, widened, multiplied and narrowed, where floats are gathered.
EXTRA_OF_EXTEND = 10


def quantized(config: Any, schemes: str, keep_float: list[str] | None = None) -> Quantization:
    """schemes: of the linears, "kv8", or both with a + between. keep_float: None: as conf/quant has it."""
    scheme: Any = schemes.removesuffix("kv8").removesuffix("+") or None
    if keep_float is None:
        keep_float = [] if scheme == "w8a16" else ["down_proj", "lm_head"]
    linears = select_linears(config, keep_float) if scheme else ()
    return Quantization(scheme, linears, stored=scheme == "w8a8", kv8=schemes.endswith("kv8"))


@pytest.mark.parametrize(
    ("soc", "size", "schemes", "norm", "layers"),
    [
        *(case(soc, size, schemes, norm) for soc, schemes, norm in EXTRA for size in SIZES),
        case(A2, "7b", "w8a8+kv8", "fused", layers=3, slow=False),
        case(A2, "2b", "w8a8_dynamic+kv8", "exact", layers=3, slow=False),
        case(DUO, "7b", "w8a8", "exact", layers=3, slow=False),
    ],
)
def test_a_quantized_decode_step_has_the_budgeted_kernels(
    soc: str, size: str, schemes: str, norm: str, layers: int | None
) -> None:
    config = few_layers(size, layers)
    quantization = quantized(config, schemes)
    besides = BESIDES[soc, size] + 4 + (10 if quantization.kv8 else 0)  # a head in parts; the places of rows
    check_budget(soc, config, norm, BUDGETS[soc, size, norm] + EXTRA[soc, schemes, norm], besides, quantization)


def test_quantization_costs_at_most_two_kernels_per_layer() -> None:
    assert max(EXTRA.values()) <= MOST_EXTRA


@pytest.mark.parametrize(
    ("soc", "size", "schemes", "dtype", "phases", "layers"),
    [
        *(
            case(soc, size, schemes, dtype, ("prefill", "extend", "decode"), layers=4)
            for soc, schemes in dict.fromkeys((soc, schemes) for soc, schemes, _ in EXTRA)
            for size in SIZES
            for dtype in ((HALF, BRAIN) if soc == A2 else (HALF,))
        ),
        case(A2, "7b", "w8a8+kv8", HALF, ("prefill", "extend")),
        case(A2, "7b", "w8a8+kv8", BRAIN, ("prefill", "extend"), layers=2, slow=False),
    ],
)
def test_quantized_phases_are_legal_and_copy_nothing(
    soc: str, size: str, schemes: str, dtype: torch.dtype, phases: tuple[str, ...], layers: int | None
) -> None:
    """Each phase lowers to a legal graph that copies nothing and has few kernels more than its float form."""
    config = few_layers(size, layers)
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


@on_each_chip
@pytest.mark.parametrize("schemes", ["w8a8", "w8a16"])
def test_an_int8_head_is_legal(soc: str, schemes: str) -> None:
    """A quantized head of 256,000 rows is legal: as one product of int8, in parts where only its weight is int8."""
    config = replace(GEMMA_7B, num_hidden_layers=1)
    quantization = quantized(config, schemes, ["down_proj"])
    assert "lm_head" in quantization.linears
    counts, _ = lowered_counts(soc, config, "exact", Bucket("decode", 8, 1, 16), HALF, 64, quantization)
    of_head = 1 if schemes == "w8a8" else 4
    layer = 3  # q, k, v in one; output; gate and up in one
    products = {"w8a8": "QuantBatchMatmulV3", "w8a16": "WeightQuantBatchMatmulV2"}[schemes]
    assert counts.by_type[products] == layer + of_head, counts
    assert counts.by_type["MatMulV2"] == 1, counts  # down_proj


@pytest.mark.parametrize(
    ("soc", "size", "norm", "dtype", "block_size", "layers"),
    [
        case(soc, size, norm, dtype, block_size)
        for size in SIZES
        for soc, dtype in ((A2, HALF), (A2, BRAIN), (DUO, HALF))
        for norm, block_size in (("exact", 16), ("exact", 64), ("exact", 128), ("fused", 64))
    ],
)
def test_every_phase_is_legal_and_lean(
    soc: str, size: str, norm: str, dtype: torch.dtype, block_size: int, layers: int | None
) -> None:
    width = 1024 // block_size
    buckets = [Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, width), Bucket("decode", 32, 1, width)]
    for bucket in [*buckets, Bucket("decode", 8, 1, width, "sample", 5)]:
        lowered_counts(soc, few_layers(size, layers), norm, bucket, dtype, block_size)
