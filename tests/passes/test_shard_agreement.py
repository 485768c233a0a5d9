"""The demo in w8a8 on several ranks against one: nearly the same integers, and the same tokens.

Ranks sum integers where a layer is in int8, and float32 where it is in floating point, as the down projection is by
default. Chips that have no such products (the Atlas 300I DUO) sum shares that are rounded to float16: that moves an
integer here and there, and each moved integer is a step of 1/127 for the layers behind it. So whole runs are compared,
and runs in which every column-parallel linear of the ranks is given one rank's integers: what is compared then is the
doing of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from torch import Tensor, fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.checkpoint import Checkpoint, open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import Part, evaluate
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.training.tokenizer import load_tokenizer
from graph_gemma.runners.demo.world import calibration_texts, held_out_stories

aten = torch.ops.aten
# The passes up to the caches: a graph of whole sequences that returns all logits.
NOT_OF_SEQUENCES = ("paged_attention", "last_token", "select_token", "shard_token_selection")
COLUMN_PARALLEL = ("qkv_proj", "gate_up_proj")
ROWS, TOKENS = 16, 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """All projections in int8, the row-parallel ones too."""
    yield from quantized(tmp_path_factory.mktemp("quantized") / "demo", ["lm_head"])


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """As quantize.py makes it: down_proj stays in floating point."""
    yield from quantized(tmp_path_factory.mktemp("by_default") / "demo", ["down_proj", "lm_head"])


def quantized(target: Path, keep_float: list[str]) -> Iterator[Checkpoint]:
    config = read_config(CHECKPOINT_DIR)
    options = QuantizerOptions(Quantization("w8a8", select_linears(config, keep_float), stored=True))
    tokenizer = load_tokenizer(CHECKPOINT_DIR)
    quantize_checkpoint(CHECKPOINT_DIR, target, options, [tokenizer.encode(t).ids for t in calibration_texts(8)])
    with open_checkpoint(target, read_config(target)) as opened:
        yield opened


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the integers that its column-parallel linears get.

    forced: gives them these instead. rounded: ranks sum shares that are rounded to the graph's dtype.
    """

    def __init__(self, module: fx.GraphModule, forced: list[Tensor] | None, rounded: bool) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.integers: list[Tensor] = []
        self._forced = forced
        self._rounded = rounded

    def run_node(self, node: fx.Node) -> Any:
        if node.target == ops.int8_linear and node.meta["layer"].endswith(COLUMN_PARALLEL):
            (given, *rest), options = self.fetch_args_kwargs_from_env(node)
            self.integers.append(given)
            if self._forced is not None:
                return node.target(self._forced[len(self.integers) - 1], *rest, **options)
        if self._rounded and node.target in (ops.dequantize, aten.to.dtype):
            (joined, *_), ((_, *rest), options) = node.args, self.fetch_args_kwargs_from_env(node)
            if joined.target == ops.all_reduce:
                return ops.all_reduce(node.target(self.env[joined.args[0]], *rest, **options))
        return super().run_node(node)


@dataclass
class Prepared:
    """A rank's graph of whole sequences, and its weights."""

    module: fx.GraphModule
    weights: list[Tensor]

    def run(self, forced: list[Tensor] | None = None, rounded: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits behind every token of the held-out stories, and the integers."""
        tokenizer = load_tokenizer(CHECKPOINT_DIR)
        ids = torch.tensor([tokenizer.encode(text).ids[:TOKENS] for text in held_out_stories(ROWS)])
        positions = torch.arange(TOKENS).expand_as(ids).contiguous()
        recorder = Recorder(self.module, forced, rounded)
        with torch.inference_mode():
            (logits,) = recorder.run(*self.weights, ids, positions)
        return logits, recorder.integers


def prepare(checkpoint: Checkpoint, dtype: torch.dtype, shard: Shard) -> Prepared:
    config = read_config(CHECKPOINT_DIR)
    bucket = Bucket("prefill", ROWS, TOKENS, 0)
    graph = capture(config, bucket, KVCacheConfig(1, 16), dtype, checkpoint.quantization)
    passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
    run_passes(graph, [each for each in passes if each.name not in NOT_OF_SEQUENCES])

    def read(name: str, part: Part | None = None) -> Tensor:
        return checkpoint.read(name) if part is None else checkpoint.read_slice(name, *part)

    tensors = evaluate(graph.weight_plan.values(), read, torch.device("cpu"))
    return Prepared(graph.module, [tensors[expression] for expression in graph.weight_plan.values()])


def differences(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """How far the integers of all layers are apart."""
    assert len(found) == len(expected) == 2 * read_config(CHECKPOINT_DIR).num_hidden_layers
    return torch.cat([(a.int() - b.int()).abs().flatten() for a, b in zip(found, expected, strict=True)])


def agreement(found: Tensor, expected: Tensor) -> float:
    return (found.argmax(-1) == expected.argmax(-1)).float().mean().item()


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_integers_differ_by_one_at_most_and_tokens_agree(checkpoint: Checkpoint, world_size: int) -> None:
    logits, integers = prepare(checkpoint, torch.float32, WHOLE).run()
    ranks = [prepare(checkpoint, torch.float32, Shard(rank, world_size)) for rank in range(world_size)]
    for found, moved in run_ranks(world_size, lambda shard: ranks[shard.rank].run()):
        assert differences(moved, integers).max() <= 1
        assert agreement(found, logits) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bit_the_integers_are_those_of_one_rank(
    checkpoint: Checkpoint, dtype: torch.dtype, world_size: int
) -> None:
    """What is summed over the ranks are integers, but for the embedding, which one rank has."""
    logits, integers = prepare(checkpoint, dtype, WHOLE).run()
    ranks = [prepare(checkpoint, dtype, Shard(rank, world_size)) for rank in range(world_size)]
    for found, moved in run_ranks(world_size, lambda shard: ranks[shard.rank].run()):
        assert differences(moved, integers).max() == 0
        assert agreement(found, logits) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float_down_projection_moves_hardly_an_integer(
    by_default: Checkpoint, dtype: torch.dtype, world_size: int
) -> None:
    """Its shares are summed in float32: what differs is the order of the sum."""
    compare(by_default, dtype, world_size, moved=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_that_are_rounded_move_few_integers(by_default: Checkpoint, world_size: int) -> None:
    """As on a chip whose products give 16 bit only."""
    compare(by_default, torch.float16, world_size, moved=0.02, rounded=True)


def compare(checkpoint: Checkpoint, dtype: torch.dtype, world_size: int, moved: float, rounded: bool = False) -> None:
    """Ranks against one, given its integers and left alone. moved: the largest share of integers that one layer may
    move."""
    logits, integers = prepare(checkpoint, dtype, WHOLE).run()
    ranks = [prepare(checkpoint, dtype, Shard(rank, world_size)) for rank in range(world_size)]
    for found, given in run_ranks(world_size, lambda shard: ranks[shard.rank].run(integers, rounded)):
        steps = differences(given, integers)
        share = (steps > 0).double().mean().item()
        print(f"{dtype}, {world_size} ranks: {share:.1e} moved, agreement {agreement(found, logits):.2%}")
        assert steps.max() <= 1
        assert share <= moved
        assert agreement(found, logits) >= 0.99
    for found, _ in run_ranks(world_size, lambda shard: ranks[shard.rank].run(rounded=rounded)):
        print(f"left alone: agreement {agreement(found, logits):.2%}")
        assert agreement(found, logits) >= 0.99
