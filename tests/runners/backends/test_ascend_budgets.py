"""Budgets of what lowered graphs do besides the model's mathematics: gathers of cached blocks, recompiles; and the same
model taken naively."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ascend_budgets import (
    BLOCK,
    HALF,
    check_gathers,
    check_one_graph_per_bucket,
    selected,
    serve_growing_lengths,
)
from support.chip_processes import A2, DUO

from graph_gemma.graph_model.ascend.ge_graph import VIEWS, GeGraph
from graph_gemma.graph_model.ascend.ops.attention_choice import AttentionChoice, choose_attention
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.passes.ascend import attention as ascend_attention
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.roofline import estimate, gathered_bytes
from graph_gemma.runners.backends.torchair import AscendOptions, TorchairBackend
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.inspection import naive as naive_module
from graph_gemma.runners.inspection.naive import compare_with_naive, measure


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


@pytest.mark.chip
@pytest.mark.parametrize(
    ("soc", "config", "bucket", "reader"),
    [
        pytest.param(A2, GEMMA_2B, Bucket("extend", 2, 256, 16), "FusedInferAttentionScore", id="later chunk of 2b"),
        pytest.param(
            DUO, GEMMA_7B, Bucket("extend", 1, 256, 16), "PromptFlashAttention",
            id="later chunk of 7b", marks=pytest.mark.slow,
        ),
        pytest.param(DUO, GEMMA_2B, Bucket("decode", 8, 1, 16), "BatchMatMul", id="decode of 2b"),
        pytest.param(
            DUO, GEMMA_7B, Bucket("decode", 257, 1, 1), "BatchMatMul",
            id="decode of many rows of 7b", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_each_cached_block_is_gathered_once(
    soc: str, config: GemmaConfig, bucket: Bucket, reader: str, tmp_path: Path
) -> None:
    """Keys and values of every layer, which nothing copies before they are attended to; and the dump says so."""
    graph = selected(replace(config, num_hidden_layers=2), bucket, soc)
    backend = TorchairBackend(AscendOptions(find_soc(soc), "exact", dump_dir=tmp_path), tmp_path)
    lowered = backend.lower(graph)
    found = gathered_bytes(lowered.graph)
    check_gathers(found, graph, tensors=4)
    assert readers_of_gathers(lowered.graph) == {reader}
    text = (tmp_path / str(bucket) / "lowered.txt").read_text()
    assert f"# gathers of cached blocks: 4, which copy {sum(found.values())} bytes\n" in text
    assert "blocks are gathered" in text


@pytest.mark.chip(A2)
def test_nothing_is_gathered_where_attention_reads_pages(tmp_path: Path) -> None:
    backend = TorchairBackend(AscendOptions(find_soc(A2), "exact", dump_dir=tmp_path), tmp_path)
    graph = selected(replace(GEMMA_2B, num_hidden_layers=1), Bucket("decode", 8, 1, 16), A2)
    assert not gathered_bytes(backend.lower(graph).graph)
    assert "# gathers of cached blocks: 0, " in (tmp_path / "decode-b8-w16" / "lowered.txt").read_text()


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


AROUND_THE_LIMIT = [(3, 1), (4, 1), (4, 2)]
GROUPS = [*((group, 1) for group in range(2, 9)), *((group, 2) for group in (2, 3, 4, 8))]


@pytest.mark.chip(DUO)
@pytest.mark.parametrize(
    ("group", "kv_heads"),
    [pytest.param(*sizes, marks=[] if sizes in AROUND_THE_LIMIT else pytest.mark.slow) for sizes in GROUPS],
)
def test_decode_attention_is_the_one_that_moves_fewer_bytes(group: int, kv_heads: int) -> None:
    """group: wide query heads per key head."""
    long, short = (Bucket("decode", 4, 1, width) for width in (16, 8))
    config = with_heads(group, kv_heads)
    ways = [
        AttentionChoice("IncreFlashAttention", True, group, group, "query heads as rows"),
        AttentionChoice("decomposed", False, 1, 3, "gathered"),
    ]
    chosen = choose_attention(
        find_soc(DUO), "decode", BLOCK, config.num_attention_heads, kv_heads, config.head_dim, long.batch
    )
    moved = {way.op: with_attention(way, config, long) for way in ways}
    assert moved[chosen.op] == min(moved.values())
    assert 0 <= passes_moved(chosen, config, long, short) - chosen.cache_passes < 0.5


@pytest.mark.chip(DUO)
def test_later_chunks_move_cached_blocks_as_often_as_is_said() -> None:
    long, short = (Bucket("extend", 1, 16, width) for width in (16, 8))
    for group in (1, 2):
        config = with_heads(group, kv_heads=2)
        chosen = choose_attention(
            find_soc(DUO), "extend", BLOCK, config.num_attention_heads, 2, config.head_dim, long.batch
        )
        assert 0 <= passes_moved(chosen, config, long, short) - chosen.cache_passes < 0.5, (group, chosen)


@pytest.mark.chip(A2)
def test_a_thousand_steps_of_growing_lengths_recompile_nothing(tmp_path: Path) -> None:
    warm_up, serving = serve_growing_lengths(tmp_path, 1010, 1088)
    check_one_graph_per_bucket(warm_up, serving)
    assert len(serving.buckets) >= 1000
    decode = {bucket.max_blocks_per_seq for bucket in serving.buckets if bucket.phase == "decode"}
    assert len(decode) >= 3, decode


@pytest.mark.chip(A2)
def test_transformers_taken_naively_has_four_times_the_kernels(tmp_path: Path) -> None:
    settings = ["model=gemma_2b", "weights=random", "dtype=float16", f"cache_dir={tmp_path}"]
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
