"""Budgets of what lowered graphs do besides the model's mathematics: gathers of cached blocks, recompiles; and the same
model taken naively. See support.standin_cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.checkpoints import make_checkpoint
from support.standin_cases import A2, DUO, Case, Cases

from graph_model.ascend.ge_graph import VIEWS, GeGraph
from graph_model.ascend.ops.attention_choice import AttentionChoice, choose_attention
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.chips.registry import find_soc
from graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_model.graph import KVCacheConfig, ModelGraph
from passes.ascend import attention as ascend_attention
from passes.framework.manager import run_passes
from passes.pipeline import DEFAULT_PASSES
from runners.backends.ascend import standin
from runners.backends.ascend.lower import lower
from runners.backends.ascend.recording import LoadedGraph, recorded_graphs
from runners.backends.ascend.roofline import estimate, gathered_bytes
from runners.backends.torchair import AscendOptions, TorchairBackend, kernel_passes
from runners.command_line.entry import compose
from runners.compile import CompiledModel
from runners.engine.sampling_params import SamplingParams
from runners.inspection import naive as naive_module
from runners.inspection.naive import compare_with_naive, measure
from runners.llm import LLM

CASES = Cases()
HALF = torch.float16
BLOCK = 64


def selected(config: GemmaConfig, bucket: Bucket, soc: str) -> ModelGraph:
    graph = capture(config, bucket, KVCacheConfig(1024, BLOCK), HALF)
    run_passes(graph, [*(cls() for cls in DEFAULT_PASSES), *kernel_passes(AscendOptions(find_soc(soc), "exact"))])
    return graph


def check_gathers(found: dict[str, int], graph: ModelGraph, tensors: int) -> None:
    """Each of `tensors` gathers copies the blocks that the rows' tables name, once."""
    config, bucket, cache_config = graph.config, graph.bucket, graph.cache_config
    rows = bucket.batch * bucket.max_blocks_per_seq * cache_config.block_size
    each = prod((rows, config.num_key_value_heads, config.head_dim, graph.dtype.itemsize))
    assert sorted(found.values()) == [each] * tensors, (found, each, tensors)


def readers_of_gathers(graph: GeGraph) -> set[str]:
    """Types of the nodes that read gathered blocks, through views."""
    names, types = set(gathered_bytes(graph)), set()
    for node in graph.nodes:
        if any(edge.producer in names for edge in node.inputs):
            if node.type in VIEWS:
                names.add(node.name)
            else:
                types.add(node.type)
    return types


def gathers_are_budgeted(soc: str, config: GemmaConfig, bucket: Bucket, reader: str, folder: Path) -> None:
    """Keys and values of every layer, which nothing copies before they are attended to; and the dump says so."""
    graph = selected(replace(config, num_hidden_layers=2), bucket, soc)
    backend = TorchairBackend(AscendOptions(find_soc(soc), "exact", dump_dir=folder), folder)
    lowered = backend.lower(graph)
    found = gathered_bytes(lowered.graph)
    check_gathers(found, graph, tensors=4)
    assert readers_of_gathers(lowered.graph) == {reader}
    text = (folder / str(bucket) / "lowered.txt").read_text()
    assert f"# gathers of cached blocks: 4, which copy {sum(found.values())} bytes\n" in text
    assert "blocks are gathered" in text


for _soc, _name, _config, _bucket, _reader, _slow in (
    (A2, "later_chunk_of_2b", GEMMA_2B, Bucket("extend", 2, 256, 16), "FusedInferAttentionScore", False),
    (DUO, "later_chunk_of_7b", GEMMA_7B, Bucket("extend", 1, 256, 16), "PromptFlashAttention", True),
    (DUO, "decode_of_2b", GEMMA_2B, Bucket("decode", 8, 1, 16), "BatchMatMul", False),
    (DUO, "decode_of_many_rows_of_7b", GEMMA_7B, Bucket("decode", 257, 1, 1), "BatchMatMul", True),
):
    CASES[f"a_{_name}_gathers_each_block_once_on_{_soc}"] = Case(
        _soc, partial(gathers_are_budgeted, _soc, _config, _bucket, _reader), _slow
    )


@CASES.add(A2)
def nothing_is_gathered_where_attention_reads_pages(folder: Path) -> None:
    backend = TorchairBackend(AscendOptions(find_soc(A2), "exact", dump_dir=folder), folder)
    graph = selected(replace(GEMMA_2B, num_hidden_layers=1), Bucket("decode", 8, 1, 16), A2)
    assert not gathered_bytes(backend.lower(graph).graph)
    assert "# gathers of cached blocks: 0, " in (folder / "decode-b8-w16" / "lowered.txt").read_text()


def with_attention(choice: AttentionChoice, config: GemmaConfig, bucket: Bucket) -> int:
    """Bytes that the step moves on the DUO, at full tables, where its attention runs in this way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ascend_attention, "attention_choice", lambda graph, chip, layer=0: choice)
        return estimate(lower(selected(config, bucket, DUO)).graph, find_soc(DUO)).total.bytes


def passes_moved(choice: AttentionChoice, config: GemmaConfig, long: Bucket, short: Bucket) -> float:
    """How often a longer block table's keys and values are moved; besides them scores, masks and places of tokens."""
    more = with_attention(choice, config, long) - with_attention(choice, config, short)
    tokens = long.batch * (long.max_blocks_per_seq - short.max_blocks_per_seq) * BLOCK
    return more / (tokens * config.num_key_value_heads * 2 * config.head_dim * HALF.itemsize)


def with_heads(group: int, kv_heads: int) -> GemmaConfig:
    return replace(GEMMA_2B, num_hidden_layers=1, num_attention_heads=group * kv_heads, num_key_value_heads=kv_heads)


def decode_attention_moves_fewer_bytes(sizes: list[tuple[int, int]], folder: Path) -> None:
    """sizes: wide query heads per key head, and key heads."""
    long, short = (Bucket("decode", 4, 1, width) for width in (16, 8))
    wrong = {}
    for group, kv_heads in sizes:
        config = with_heads(group, kv_heads)
        ways = [
            AttentionChoice("IncreFlashAttention", True, group, group, "query heads as rows"),
            AttentionChoice("decomposed", False, 1, 3, "gathered"),
        ]
        chosen = choose_attention(
            find_soc(DUO), "decode", BLOCK, config.num_attention_heads, kv_heads, config.head_dim, long.batch
        )
        moved = {way.op: with_attention(way, config, long) for way in ways}
        passes = passes_moved(chosen, config, long, short)
        if moved[chosen.op] != min(moved.values()) or not 0 <= passes - chosen.cache_passes < 0.5:
            wrong[group, kv_heads] = (chosen, passes, moved)
    assert not wrong, wrong


@CASES.add(DUO)
def later_chunks_move_cached_blocks_as_often_as_is_said(folder: Path) -> None:
    long, short = (Bucket("extend", 1, 16, width) for width in (16, 8))
    for group in (1, 2):
        config = with_heads(group, kv_heads=2)
        chosen = choose_attention(
            find_soc(DUO), "extend", BLOCK, config.num_attention_heads, 2, config.head_dim, long.batch
        )
        assert 0 <= passes_moved(chosen, config, long, short) - chosen.cache_passes < 0.5, (group, chosen)


_AROUND_THE_LIMIT = [(3, 1), (4, 1), (4, 2)]
_GROUPS = [*((group, 1) for group in range(2, 9)), *((group, 2) for group in (2, 3, 4, 8))]
for _name, _sizes, _slow in (("", _AROUND_THE_LIMIT, False), ("of_all_groups_", _GROUPS, True)):
    CASES[f"decode_attention_{_name}is_the_one_that_moves_fewer_bytes"] = Case(
        DUO, partial(decode_attention_moves_fewer_bytes, _sizes), _slow
    )


@dataclass
class Serving:
    """What a model did: buckets that it ran, graphs that the engine got, steps made or read from the cache."""

    buckets: list[Bucket] = field(default_factory=list)
    graphs: list[LoadedGraph] = field(default_factory=list)
    made: int = 0


@contextmanager
def observed(llm: LLM) -> Iterator[Serving]:
    model: Any = llm.loaded.model
    assert isinstance(model, CompiledModel)
    report, run, serving = model.report, model.run, Serving()

    def made() -> int:
        return report.compiled + report.from_cache

    before = made()

    def note(bucket: Bucket) -> Any:
        serving.buckets.append(bucket)
        return run(bucket)

    with recorded_graphs() as serving.graphs:
        model.run = note
        yield serving
    serving.made = made() - before


def check_one_graph_per_bucket(warm_up: Serving, serving: Serving) -> None:
    """Every bucket's graph was handed over while warming up, once; none later."""
    assert len(warm_up.graphs) == warm_up.made >= len(set(serving.buckets)), warm_up
    assert serving.made == len(serving.graphs) == 0, serving


def serve_growing_lengths(
    folder: Path, steps_each: int, max_seq_len: int, spoil: Any = None
) -> tuple[Serving, Serving]:
    """Two sequences side by side, which grow by so many tokens; what was done while warming up, and afterwards.

    spoil: what to do to the model in between.
    """
    config = replace(steps.BASE, num_hidden_layers=1, max_position_embeddings=2048)
    make_checkpoint(folder / "checkpoint", config, dtype=HALF)
    settings = ["backend=torchair", f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]
    settings += ["block_size=16", "max_batch_size=2", "max_prefill_batch_size=1", "max_prefill_tokens=64"]
    prompts, sampling = [[5, 6, 7], list(range(3, 60))], SamplingParams(max_new_tokens=steps_each, ignore_eos=True)
    with LLM([*settings, f"max_seq_len={max_seq_len}"]) as llm:
        with observed(llm) as warm_up:
            llm.warm_up(prompts, sampling)
        if spoil is not None:
            spoil(llm.loaded.model)
        with observed(llm) as serving:
            results = llm.generate(prompts, sampling)
    assert [len(result.token_ids) for result in results] == [steps_each] * 2
    return warm_up, serving


@CASES.add(A2)
def a_thousand_steps_of_growing_lengths_recompile_nothing(folder: Path) -> None:
    warm_up, serving = serve_growing_lengths(folder, 1010, 1088)
    check_one_graph_per_bucket(warm_up, serving)
    assert len(serving.buckets) >= 1000
    decode = {bucket.max_blocks_per_seq for bucket in serving.buckets if bucket.phase == "decode"}
    assert len(decode) >= 3, decode


@CASES.add(A2)
def transformers_taken_naively_has_four_times_the_kernels(folder: Path) -> None:
    settings = ["model=gemma_2b", "weights=random", "dtype=float16", f"cache_dir={folder}"]
    measured: list[dict[str, Any]] = []

    def note(*arguments: Any) -> Any:
        measured.append(measure(*arguments))
        return measured[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naive_module, "measure", note)
        text = compare_with_naive(compose("inspect_graph", settings), None)
    naive, prefill, decode = measured[0].values()
    rows = [line.split() for line in text.splitlines()]
    assert [row[-7] for row in rows[1:4]] == [str(step.kernels) for step in (naive, prefill, decode)], text
    assert standin.BANNER in text
    assert f"{naive.uncounted} nodes of a layer declare no shape" in text
    for own in (prefill, decode):
        assert naive.kernels > 4 * own.kernels, (naive, own)
        assert naive.layer_bytes > 2 * own.layer_bytes, (naive, own)
        assert naive.step_bytes > 2 * own.step_bytes, (naive, own)
        assert own.uncounted == own.by_type.get("Transpose", 0) == own.by_type.get("Cast", 0) == 0, own
    weights = 110e6 * 2  # parameters of a layer of Gemma-2B, in float16
    assert 0.99 * weights < decode.layer_bytes < 1.05 * weights, decode


if __name__ == "__main__":
    CASES.main()
