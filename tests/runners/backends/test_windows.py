"""A window of W shows W keys on every chip: around the borders of blocks, chunks and contexts, in tiles and whole."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from support import torchair_steps as steps
from support.ascend_budgets import selected
from support.chip_processes import A2, DUO, on_each_chip
from support.torchair_steps import CHUNK, GEMMA2, GEMMA3, StepCase

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import NAMED_CONFIGS, GemmaConfig
from graph_gemma.passes.ascend import unfused_attention
from graph_gemma.passes.ascend.unfused_attention import TILE_BYTES, tile_tokens
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.provenance import origin_of
from graph_gemma.runners.backends.ascend.roofline import estimate

BLOCK = 64
WIDTH = 3  # blocks, of which a window may leave out the first
CAPACITY = WIDTH * BLOCK
# The rows of a step end at positions around these.
BORDERS = (2, CHUNK, BLOCK, CAPACITY - CHUNK, CAPACITY)
WINDOWS = tuple(border + by for border in BORDERS for by in (-1, 0, 1))


def windowed(config: GemmaConfig, window: int, **others: Any) -> GemmaConfig:
    return replace(config, sliding_window=window, **others)  # type: ignore[call-arg]


def check_kernels_agree(soc: str, step: StepCase) -> None:
    """The kernels that a chip's passes select compute what the canonical graph does, on the CPU."""
    canonical, chosen = step.canonical(), step.selected(find_soc(soc))
    inputs = steps.step_inputs(step)
    caches = steps.filled_caches(step, canonical, inputs)
    expected, found = (steps.run_on_cpu(graph, step, inputs, caches) for graph in (canonical, chosen))
    assert steps.difference(expected, found) <= step.tolerance, step


@pytest.mark.chip
@pytest.mark.parametrize("phase", ["prefill", "extend", "decode"])
@pytest.mark.parametrize(
    ("soc", "config", "windows"),
    [
        pytest.param(A2, GEMMA3, (CHUNK - 1, BLOCK + 1), id="gemma3-a2"),
        pytest.param(DUO, GEMMA3, (BLOCK + 1,), id="gemma3-duo"),
        pytest.param(A2, GEMMA2, (BLOCK - 1,), id="gemma2-a2"),
        *(
            pytest.param(soc, config, WINDOWS, id=f"every window-{name}-{soc}", marks=pytest.mark.slow)
            for soc in (A2, DUO)
            for name, config in (("gemma3", GEMMA3), ("gemma2", GEMMA2))
        ),
    ],
)
def test_windows_at_borders(soc: str, config: GemmaConfig, windows: tuple[int, ...], phase: str) -> None:
    for window in windows:
        check_kernels_agree(soc, StepCase(windowed(config, window), torch.float16, BLOCK, phase, width=WIDTH))


@on_each_chip
def test_query_tokens_in_tiles(soc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles, of which the window leaves out keys at either end; three, of which the last is short."""
    for size in (4, 6):
        monkeypatch.setattr(unfused_attention, "tile_tokens", lambda *shape, size=size: size)
        for phase in ("prefill", "extend"):
            check_kernels_agree(soc, StepCase(windowed(GEMMA2, 5), torch.float16, BLOCK, phase, width=WIDTH))


@pytest.mark.chip(A2)
def test_windows_over_an_int8_cache() -> None:
    check_kernels_agree(A2, StepCase(windowed(GEMMA2, 9), torch.float16, BLOCK, "extend", kv8=True, width=WIDTH))
    check_kernels_agree(A2, StepCase(windowed(GEMMA3, 9), torch.float16, BLOCK, "decode", kv8=True, width=WIDTH))


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((1, 8, 1, 131072), 1),
        ((1, 8, 256, 256), 256),
        ((1, 16, 4096, 4096), 256),
        ((1, 16, 4096, 8192), 128),
        ((1, 16, 4096, 5000), 128),
        ((8, 16, 4096, 8192), 16),
        ((64, 32, 100, 131072), 16),
        ((64, 32, 9, 131072), 9),
    ],
)
def test_a_tile_takes_as_many_tokens_as_its_scores_allow(shape: tuple[int, int, int, int], tokens: int) -> None:
    assert tile_tokens(*shape) == tokens


@pytest.mark.chip(A2)
def test_decode_reads_what_windows_show_and_little_else() -> None:
    """Gemma 3 1B at a context of 32,768: weights, all keys of a full layer, and of sliding ones the window's."""
    config, context = NAMED_CONFIGS["gemma3_1b"].of_layers(range(6)), 32768
    model = selected(config, Bucket("decode", 1, 1, context // 64), A2, num_blocks=context // 64 + 1)
    weights = sum(prod(each.shape) * each.dtype.itemsize for each in set(model.weight_plan.values()))
    layers = model.family.layers
    keys = sum(layer.attention.window or context for layer in layers)
    per_key = 2 * 2 * layers[0].attention.kv_heads * layers[0].attention.head_dim
    moved = estimate(lower(model).graph, find_soc(A2), context).total.bytes
    least = weights + keys * per_key
    assert least <= moved <= 1.05 * least, moved / least


@pytest.mark.chip(A2)
@pytest.mark.parametrize("phase", ["prefill", "extend"])
def test_no_prefill_has_scores_of_all_tokens_at_once(phase: str) -> None:
    """Gemma 2 9B, 2,048 new tokens: all scores of one layer are 268 MB."""
    config = NAMED_CONFIGS["gemma2_9b"].of_layers([0, 1])
    bucket = Bucket(phase, 1, 2048, 0 if phase == "prefill" else 32)  # type: ignore[arg-type]
    graph = lower(selected(config, bucket, A2, num_blocks=33)).graph
    layers = ("", *(f"model.layers.{index}.self_attn" for index in (0, 1)))  # "": masks, which layers share
    nodes = [node for node in graph.nodes if node.type != "Data" and origin_of(node).layer in layers]
    made = [desc for node in nodes for desc in node.outputs]
    assert any(node.type == "SoftmaxV2" for node in nodes)
    largest = max(torch.Size(desc.shape).numel() * desc.dtype.itemsize for desc in made if desc.shape and desc.dtype)
    assert largest <= TILE_BYTES
    assert not [desc.shape for desc in made if desc.shape and list(desc.shape).count(2048) > 1]
