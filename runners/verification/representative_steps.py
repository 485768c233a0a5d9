"""Small steps of every kind that a chip runs; between them they have every op type of any configuration's graphs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.legality import check_layers
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.config import NAMED_CONFIGS, GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import Part, Read, evaluate, take_part
from graph_gemma.passes.check import example_inputs, random_caches
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.rank_graph import fake_group
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from graph_gemma.runners.llm.random_weights import random_weights
from graph_gemma.runners.verification.single_ops import SingleOp, cut_out_ops

_NUM_BLOCKS = 8
_LIMITS = {torch.int32: 1000, torch.float32: 8}  # of the numbers in place of zeros


@dataclass(frozen=True)
class RepresentativeStep:
    """A step of a model with random weights."""

    bucket: Bucket
    config: GemmaConfig
    dtype: str = "float16"
    norm: str = "exact"
    block_size: int = 64
    scheme: str | None = None
    kept: tuple[str, ...] = ()  # linears in floating point where others are quantized
    kv8: bool = False
    shard: Shard = WHOLE

    def __str__(self) -> str:
        heads = f"{self.config.num_attention_heads}:{self.config.num_key_value_heads} heads of {self.config.head_dim}"
        parts = [self.config.model_type, self.dtype, f"norm={self.norm}", f"blocks of {self.block_size}", heads]
        parts += [self.scheme] if self.scheme else []
        parts += ["kv8"] if self.kv8 else []
        parts += [f"rank {self.shard.rank} of {self.shard.world_size}"] if self.shard != WHOLE else []
        return f"{self.bucket} ({', '.join(parts)})"

    @property
    def quantization(self) -> Quantization | None:
        if self.scheme is None:
            return Quantization(None, kv8=True) if self.kv8 else None
        linears = select_linears(self.config, self.kept)
        return Quantization(self.scheme, linears, find_scheme(self.scheme).calibrated, self.kv8)

    def runs_on(self, soc: Chip) -> bool:
        """Whether the chip's tables allow it."""
        try:
            family = family_of(self.config)
            check_layers(soc, family, self.dtype, self.shard, self.block_size, self.quantization)
        except UserError:
            return False
        return True

    def cut_out_ops(self, soc: Chip) -> dict[str, SingleOp]:
        """The ops of the lowered step, with values that they have on random inputs. torch_npu must be loaded for `soc`.

        A rank runs alone: collectives give it what they would if all ranks had what it has.
        """
        cache_config = KVCacheConfig(_NUM_BLOCKS, self.block_size)
        passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, self.shard)
        passes += kernel_passes(AscendOptions(soc, self.norm))
        with fake_group(self.shard):
            graph = capture(self.config, self.bucket, cache_config, getattr(torch, self.dtype), self.quantization)
            run_passes(graph, passes)
            inputs = example_inputs(graph, past=True)
            plan = graph.weight_plan
            read = _without_zeros(random_weights(self.config, self.quantization))
            weights = evaluate(plan.values(), read, torch.device("cpu"))
            arguments = [*(weights[expression] for expression in plan.values()), *random_caches(graph)]
            arguments += [inputs[node.name] for node in graph.placeholders("input")]
            return cut_out_ops(lower(graph), arguments, str(self))


def representative_steps(soc: Chip) -> list[RepresentativeStep]:
    """Steps that the chip runs: phases, norms, quantizations, dtypes, shapes of heads and blocks, selections, ranks."""
    return [step for step in _steps() if step.runs_on(soc)]


def _steps() -> Iterator[RepresentativeStep]:
    prefill, extend, decode = Bucket("prefill", 2, 16, 0), Bucket("extend", 2, 16, 2), Bucket("decode", 2, 1, 2)
    sample = replace(decode, selection="sample", logprobs=2)
    score = replace(extend, selection="score", scored=4)
    distribution = replace(prefill, selection="distribution", scored=4)
    # One key head for all query heads as in Gemma-2B, and one for each as in Gemma-7B; what a chip does with a head_dim
    # of 256 depends on how many query heads share a key head.
    small = GemmaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        dtype="float32",
    )
    shared = small.of_layers([0])
    wide = replace(shared, head_dim=256)
    pairs, own = replace(wide, num_key_value_heads=2), replace(wide, num_key_value_heads=4)
    biased = replace(shared, attention_bias=True, tie_word_embeddings=False)
    step = RepresentativeStep

    yield step(prefill, shared)
    yield step(prefill, shared, block_size=128)
    yield step(extend, wide)
    yield step(decode, own)
    yield step(decode, pairs)
    yield step(decode, biased)
    yield step(sample, shared)
    yield step(score, pairs)
    yield step(distribution, own, norm="fused")
    yield step(extend, shared, norm="fused", block_size=128)
    yield step(decode, wide, norm="fused", block_size=128)

    paths = {group.role: group.paths[0] for group in family_of(shared).groups}
    kept = (paths["down"], paths["head"])
    yield step(prefill, shared, scheme="w8a8")
    yield step(decode, biased, norm="fused", scheme="w8a8", kept=kept)
    yield step(decode, shared, scheme="w8a16")
    yield step(decode, shared, scheme="w8a8_dynamic")
    yield step(extend, biased, norm="fused", scheme="w8a8_dynamic", kept=kept)
    yield step(decode, pairs, kv8=True)

    yield step(decode, wide, dtype="bfloat16")
    yield step(decode, shared, dtype="bfloat16", norm="fused", scheme="w8a8", kept=kept)
    yield step(prefill, shared, dtype="bfloat16", norm="fused", scheme="w8a8_dynamic")
    yield step(extend, shared, dtype="bfloat16", scheme="w8a16", kv8=True)

    # Windows, soft-caps, norms of heads and of branches; a full layer after a sliding one.
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim", "dtype")
    later: dict[str, Any] = {name: getattr(small, name) for name in sizes}
    later |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 12}
    caps: dict[str, Any] = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}
    bases: dict[str, Any] = {"rope_local_base_freq": 100.0, "rope_factor": 8.0}
    capped = replace(NAMED_CONFIGS["gemma2_2b"].of_layers([0, 1]), **later, **caps)
    normed = replace(NAMED_CONFIGS["gemma3_1b"].of_layers([0, 5]), **later, **bases)
    yield step(prefill, normed, block_size=128)
    yield step(extend, normed, norm="fused")
    yield step(replace(decode, max_blocks_per_seq=3), normed)  # of which the window shows two
    yield step(decode, normed, dtype="bfloat16", scheme="w8a8_dynamic", kv8=True)
    yield step(prefill, capped)
    yield step(extend, capped, dtype="bfloat16")
    yield step(decode, capped, norm="fused")

    # Tokens are looked up and chosen by all ranks together; shares of static int8 layers are summed before rounding.
    rank = Shard(1, 2)
    yield step(sample, own, shard=rank)
    yield step(decode, biased, scheme="w8a8", kept=kept, shard=rank)
    yield step(decode, shared, dtype="bfloat16", scheme="w8a8", kept=(paths["o"],), shard=rank)


def _without_zeros(read: Read) -> Read:
    """Random numbers in place of vectors of zeros, which would hide what an op does with a norm, a bias, an offset."""

    def read_part(name: str, part: Part | None = None) -> Tensor:
        tensor = read(name)
        if tensor.dim() == 1 and not tensor.any():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            limit = _LIMITS[tensor.dtype]
            whole = torch.randint(-limit, limit + 1, tensor.shape, generator=generator)
            tensor = (whole / 8 if name.endswith((".weight", ".bias")) else whole).to(tensor.dtype)
        return take_part(tensor, part)

    return read_part
