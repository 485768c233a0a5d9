"""Keys and values in int8, with a scale per token and head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.graphs import BFLOAT16, FLOAT32, LAYERS, Case, rewrite

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.passes.quantize_cache import QuantizeCache

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("bucket", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("case", [BFLOAT16, FLOAT32], ids=["bfloat16", "float32"])
def test_ops_before_ops_after_matches_numerics(case: Case, bucket: str) -> None:
    done = rewrite(QuantizeCache(), replace(case, quantization=Quantization(None, kv8=True)), bucket)
    assert done.matches == done.after["gemma.paged_attention_int8"] == LAYERS
    assert done.error <= (0.0 if bucket == "prefill" else 0.1)
    caches = [node.meta["val"] for node in done.graph.placeholders("cache")]
    assert [cache.dtype for cache in caches] == [torch.int8] * 2 * LAYERS + [torch.float32] * 2 * LAYERS
    heads = case.config.num_key_value_heads
    assert {tuple(cache.shape[:3]) for cache in caches[: 2 * LAYERS]} == {(8, heads, 16)}
    assert {tuple(scales.shape) for scales in caches[2 * LAYERS :]} == {(8, heads, 16)}


def test_what_is_written_is_the_rows_largest_value_in_127_steps() -> None:
    query, key, value = (torch.randn(2, 3, heads, 16, generator=GENERATOR) for heads in (4, 2, 2))
    caches = [torch.zeros(4, 2, 8, 16, dtype=torch.int8) for _ in range(2)]
    scales = [torch.full((4, 2, 8), torch.nan) for _ in range(2)]
    slots = torch.tensor([[8, 9, 10], [31, 16, 17]])
    table, lens = torch.tensor([[1], [3]]), torch.tensor([3, 3])
    ops.paged_attention_int8(query, key, value, *caches, *scales, slots, None, None, None, 0.25)
    for new, cache, scale in zip((key, value), caches, scales, strict=True):
        rows = new.flatten(0, 1).double().numpy()
        steps = np.abs(rows).max(-1) / 127
        np.testing.assert_allclose(scale.mT.flatten(0, 1)[slots.flatten()].numpy(), steps, rtol=1e-6)
        stored = cache.transpose(1, 2).flatten(0, 1)[slots.flatten()].numpy()
        assert np.abs(stored - rows / steps[..., None]).max() <= 0.5001
        assert int(scale.isnan().sum()) == 4 * 8 * 2 - 6 * 2  # nothing else was written
    # Row 0's blocks hold its three tokens: a fourth attends to them dequantized, whatever lies beyond.
    new = [torch.randn(2, 1, heads, 16, generator=GENERATOR) for heads in (4, 2, 2)]
    found = ops.paged_attention_int8(
        *new, *caches, *scales, torch.tensor([[11], [0]]), None, lens + 1 - torch.tensor([0, 3]), table, 0.25
    )
    keys, values = (
        (cache[1, :, :4].double() * scale[1, :, :4, None].double()).transpose(0, 1).repeat_interleave(2, 1)
        for cache, scale in zip(caches, scales, strict=True)
    )
    weights = (torch.einsum("hd,shd->hs", new[0][0, 0].double(), keys) * 0.25).softmax(-1)
    expected = torch.einsum("hs,shd->hd", weights, values)
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=1e-5, atol=1e-5)
