"""Steps of small models through the torchair backend's parts: graphs, inputs, and what executing them gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.numerics import TOLERANCE
from graph_gemma.graph_model.numerics import difference as relative
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.weights import Read, evaluate
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend.lower import LoweredStep
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from support.checkpoints import make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.modelslim import quantized_tensors
from support.ranks import part_reader

BASE = replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=2, head_dim=64, num_attention_heads=4)
DECOMPOSED = replace(BASE, num_attention_heads=8, num_key_value_heads=1, head_dim=256)
GROUPED = replace(BASE, num_attention_heads=4, num_key_value_heads=2, head_dim=256)
WIDE_GROUPS = replace(BASE, num_attention_heads=8, num_key_value_heads=2, head_dim=144)
ONE_TO_ONE = replace(BASE, num_attention_heads=2, num_key_value_heads=2, head_dim=256)
BIASED = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2)
UNTIED = replace(TINY_CONFIGS["untied_head"], num_hidden_layers=2)
_TWO_KINDS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "head_dim": 64,
    "layer_types": ("sliding_attention", "full_attention"),
}
GEMMA2, GEMMA3 = (replace(LATER_CONFIGS[name], **_TWO_KINDS) for name in ("gemma2", "gemma3"))
CHUNK, WIDTH = 16, 2


@dataclass(frozen=True)
class StepCase:
    """A model and the kind of graph that is made of it."""

    config: GemmaConfig
    dtype: torch.dtype
    block_size: int
    phase: str
    norm: str = "exact"
    scheme: str | None = None  # w8a8 is read from a quantized checkpoint, others are made when weights are loaded
    kv8: bool = False
    seed: int = 0  # of the random weights
    sampled: bool = False  # the graph returns drawn tokens with log-probabilities, else logits
    width: int = WIDTH  # blocks of a row's table, 2 or 3

    @property
    def bucket(self) -> Bucket:
        decode, prefill = self.phase == "decode", self.phase == "prefill"
        shape = (3, 1 if decode else CHUNK, 0 if prefill else self.width)
        return Bucket(self.phase, *shape, *(("sample", 2) if self.sampled else ()))  # type: ignore[arg-type]

    @property
    def quantization(self) -> Quantization | None:
        if self.scheme is None:
            return Quantization(None, kv8=True) if self.kv8 else None
        linears = select_linears(self.config, [] if self.scheme == "w8a16" else ["down_proj", "lm_head"])
        return Quantization(self.scheme, linears, stored=self.scheme == "w8a8", kv8=self.kv8)  # type: ignore[arg-type]

    @property
    def tolerance(self) -> float:
        """Largest difference that rounding may make, relative to the largest logit."""
        if self.scheme in (None, "w8a16") and not self.kv8:
            return TOLERANCE[self.dtype]
        # One unit of an int8 activation moves logits of a small random model by more than rounding does; a fused norm
        # in bfloat16 rounds 1 + w to as few bits as an int8 has, and so moves many by one.
        return 0.15 if (self.dtype, self.norm) == (torch.bfloat16, "fused") else 0.1

    def canonical(self) -> ModelGraph:
        """The graph before kernels are selected."""
        cache_config = KVCacheConfig(num_blocks=8, block_size=self.block_size)
        graph = capture(self.config, self.bucket, cache_config, self.dtype, self.quantization)
        run_passes(graph, [cls() for cls in DEFAULT_PASSES])
        if not self.sampled:
            graph.set_outputs(graph.outputs[0].args[0])  # type: ignore[arg-type]
            graph.clean()
        return graph

    def selected(self, soc: Chip) -> ModelGraph:
        """The graph that is lowered."""
        graph = self.canonical()
        run_passes(graph, kernel_passes(AscendOptions(soc, self.norm)))
        return graph


def step_inputs(case: StepCase) -> dict[str, Tensor]:
    """Row 0 fills its blocks, row 1 ends inside one, row 2 is padding. Blocks are in no order.

    In the pool of layers with a window rows have other blocks, and block 0 in place of those that fell out of it.
    """
    generator = torch.Generator().manual_seed(3)
    bucket, size = case.bucket, case.block_size
    tokens = torch.arange(bucket.chunk)
    if case.phase == "decode":
        query_lens = torch.tensor([1, 1, 1])
        starts = torch.tensor([case.width * size - 1, size + 2, 0])
    else:
        query_lens = torch.tensor([CHUNK, CHUNK - 5, 1])
        starts = torch.tensor([case.width * size - CHUNK, size - 3, 0]) * (case.phase == "extend")
    table = torch.tensor([[5, 2, 6], [7, 3, 1], [0, 0, 0]])[:, : case.width]
    real = (tokens < query_lens[:, None]) & torch.tensor([True, True, False])[:, None]
    positions = starts[:, None] + tokens
    window_table = torch.tensor([[4, 7, 2], [6, 1, 5], [0, 0, 0]])[:, : case.width]
    window = family_of(case.config).window
    if window is not None:
        first_visible = (starts - window + 1).clamp(min=0) // size
        window_table = window_table * (torch.arange(case.width) >= first_visible[:, None])

    def slots_in(table: Tensor) -> Tensor:
        return table.gather(1, (positions // size).clamp(max=case.width - 1)) * size + positions % size

    scratch = torch.arange(3 * bucket.chunk).view(3, -1)
    return {
        "input_ids": torch.randint(3, case.config.vocab_size, (3, bucket.chunk), generator=generator) * real,
        "positions": positions * real,
        "slot_mapping": torch.where(real, slots_in(table), scratch),
        "window_slot_mapping": torch.where(real, slots_in(window_table), scratch),
        "query_lens": query_lens,
        "context_lens": starts + query_lens,
        "block_table": table,
        "window_block_table": window_table,
        "temperature": torch.tensor([0.8, 0.0, 1.0]),
        "top_k": torch.tensor([20, 0, 0]),
        "top_p": torch.tensor([0.9, 1.0, 0.5]),
        "uniform": torch.tensor([0.3, 0.9, 0.7]),
    }


def filled_caches(case: StepCase, graph: ModelGraph, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Random numbers where tokens of rows are, NaN everywhere else but in the scratch block. int8: NaN as scale."""
    generator = torch.Generator().manual_seed(4)
    caches = []
    placeholders = graph.placeholders("cache")
    for node in placeholders[: len(placeholders) // (2 if case.kv8 else 1)]:
        fake = node.meta["val"].transpose(1, 2) if case.kv8 else node.meta["val"]
        cache = torch.full(fake.shape, torch.nan)
        cache[0] = 0
        table = inputs[graph.slots_of(node).replace("slot_mapping", "block_table")]
        for row in range(2):
            tokens = torch.randn(case.width, *cache.shape[1:], generator=generator)
            tokens.flatten(0, 1)[int(inputs["context_lens"][row]) :] = torch.nan
            held = table[row] > 0
            cache[table[row, held]] = tokens[held]
        caches.append(cache.to(case.dtype))
    if not case.kv8:
        return caches
    scales = [cache.float().abs().amax(-1) / 127 for cache in caches]
    pairs = zip(caches, scales, strict=True)
    rounded = [(cache / scale[..., None]).nan_to_num().round().to(torch.int8) for cache, scale in pairs]
    return [*(cache.transpose(1, 2).contiguous() for cache in rounded), *(scale.mT.contiguous() for scale in scales)]


@dataclass
class StepResult:
    """What a step gave."""

    logits: Tensor  # [2, vocab], of the rows that are no padding
    padding: Tensor  # [vocab], of the last row
    caches: list[Tensor]  # their numbers after the step


@torch.no_grad()
def run_on_cpu(graph: ModelGraph, case: StepCase, inputs: dict[str, Tensor], caches: list[Tensor]) -> StepResult:
    """Execute the FX graph with the CPU kernels of its ops."""
    own = [cache.clone() for cache in caches]
    arguments = [*weights_of(graph, case), *own, *(inputs[node.name] for node in graph.placeholders("input"))]
    (logits,) = graph.module(*arguments)
    return StepResult(logits[:2], logits[2], _contents(case, own))


@torch.no_grad()
def run_lowered(
    lowered: LoweredStep, graph: ModelGraph, case: StepCase, inputs: dict[str, Tensor], caches: list[Tensor]
) -> StepResult:
    """Let the GE interpreter execute a lowered graph."""
    own = [cache.to("npu") for cache in caches]
    arguments = [weight.to("npu") for weight in weights_of(graph, case)] + own
    arguments += [inputs[node.name].to("npu") for node in graph.placeholders("input")]
    logits = lowered.load()(*arguments)[0].cpu()
    return StepResult(logits[:2], logits[2], _contents(case, [cache.cpu() for cache in own]))


def _contents(case: StepCase, caches: list[Tensor]) -> list[Tensor]:
    """Keys and values as numbers, NaN where none are."""
    if not case.kv8:
        return caches
    layers = len(caches) // 2
    pairs = zip(caches[:layers], caches[layers:], strict=True)
    return [(cache.float() * scales[..., None]).transpose(1, 2) for cache, scales in pairs]


def difference(expected: StepResult, found: StepResult) -> float:
    """Largest difference of logits and of what caches hold, relative to the largest expected value. NaN: inf."""
    worst = relative(expected.logits, found.logits)
    for a, b in zip(expected.caches, found.caches, strict=True):
        holds = ~a.isnan()
        holds[0] = False  # scratch
        if not torch.equal(holds[1:], ~b.isnan()[1:]):
            return float("inf")
        worst = max(worst, relative(a[holds], b[holds]))
    return worst if bool(found.padding.isfinite().all()) else float("inf")


def weights_of(graph: ModelGraph, case: StepCase) -> list[Tensor]:
    """Random weights, evaluated by the graph's plan."""
    plan = graph.weight_plan
    tensors = evaluate(
        plan.values(), _reader(case.config, case.dtype, case.quantization, case.seed), torch.device("cpu")
    )
    return [tensors[expression] for expression in plan.values()]


@cache
def _reader(config: GemmaConfig, dtype: torch.dtype, quantization: Quantization | None, seed: int) -> Read:
    weights: dict[str, Tensor] = dict(make_model(config, seed, dtype).named_parameters())
    if quantization is not None and quantization.stored:
        weights = quantized_tensors(weights, quantization.linears, quantization.scheme, dtype).tensors

    return part_reader(weights.__getitem__)
