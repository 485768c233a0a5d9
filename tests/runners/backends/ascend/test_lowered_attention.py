"""Attention and its caches, lowered and executed: paged and flat, decode, chunks and prompts, on both chips."""

from __future__ import annotations

import pytest
import torch
from support.chip_processes import A2, DUO
from support.lowered_modules import attend, compiled, npu
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.printer import count_nodes, list_graph
from graph_gemma.runners.backends.ascend.recording import recorded_graphs

pytestmark = pytest.mark.usefixtures("fresh_compiler")
BLOCK, BLOCKS, HEADS, KV_HEADS, DIM, HIDDEN = 16, 12, 4, 2, 64, 96


def attention_block(query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor,
                    lengths: Tensor, table: Tensor) -> Tensor:  # fmt: skip
    torch.ops.npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode="Norm")
    blocks, block_size = key_cache.shape[:2]
    return torch.ops.air.npu_fused_infer_attention_score(
        query,
        key_cache.view(blocks, block_size, -1),
        value_cache.view(blocks, block_size, -1),
        actual_seq_lengths_kv=lengths,
        block_table=table,
        num_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        scale=DIM**-0.5,
        input_layout="BSND",
        block_size=block_size,
    )[0]


@pytest.mark.chip(A2)
def test_one_graph_serves_eighty_decode_steps_of_two_sequences() -> None:
    run = compiled(attention_block)
    kc, vc = npu(*(torch.zeros(BLOCKS, BLOCK, KV_HEADS, DIM, dtype=torch.float16) for _ in range(2)))
    table = torch.tensor([[3, 1, 7, 0, 9, 11], [2, 10, 4, 5, 6, 8]], dtype=torch.int32)
    history: list[list[Tensor]] = [[], []]
    worst = 0.0
    with recorded_graphs() as loaded:
        for position in range(80):
            q = torch.randn(2, 1, HEADS, DIM, dtype=torch.float16)
            new = torch.randn(2, 2, KV_HEADS, DIM, dtype=torch.float16)  # [key or value, row, ...]
            history[0].append(new[0])
            history[1].append(new[1])
            slots = table[:, position // BLOCK] * BLOCK + position % BLOCK
            lens = torch.full((2,), position + 1)
            out = run(*npu(q, new[0], new[1]), kc, vc, *npu(slots, lens, table)).cpu()
            for row in range(2):
                k, v = (torch.stack(side)[:, row] for side in history)
                expected = attend(q[row], k, v, DIM**-0.5)
                worst = max(worst, (out[row].double() - expected).abs().max().item())
    assert worst < 2e-3, worst
    assert len(loaded) == 1, f"{len(loaded)} graphs"
    counts = count_nodes(loaded[0].graph)
    assert counts.copies == {"TensorMove": 0, "Assign": 0, "Transpose": 0, "Cast": 0}, counts
    assert "&key_cache=" in list_graph(loaded[0].graph)


@pytest.mark.chip(A2)
def test_a_lowered_padded_chunk_equals_an_unpadded_one() -> None:
    block, blocks = 128, 4

    def step(q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, slots: Tensor, q_lens: Tensor, kv_lens: Tensor,
             table: Tensor, mask: Tensor) -> Tensor:  # fmt: skip
        torch.ops.npu.npu_scatter_pa_kv_cache(k, v, kc, vc, slots, cache_mode="Norm")
        return torch.ops.air.npu_fused_infer_attention_score(
            q, kc.view(blocks, block, -1), vc.view(blocks, block, -1), atten_mask=mask, actual_seq_lengths=q_lens,
            actual_seq_lengths_kv=kv_lens, block_table=table, num_heads=HEADS, num_key_value_heads=KV_HEADS,
            scale=DIM**-0.5, input_layout="BSND", block_size=block, sparse_mode=3,
        )[0]  # fmt: skip

    run = compiled(step)
    kc, vc = npu(*(torch.zeros(blocks, block, KV_HEADS, DIM, dtype=torch.bfloat16) for _ in range(2)))
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    table = torch.tensor([[2, 1]], dtype=torch.int32)
    q, k, v = (torch.randn(150, heads, DIM, dtype=torch.bfloat16) for heads in (HEADS, KV_HEADS, KV_HEADS))
    chunk = 64
    pieces = []
    with recorded_graphs() as loaded:
        for start in range(0, 150, chunk):
            tokens = min(chunk, 150 - start)

            def padded(x: Tensor, start: int = start, tokens: int = tokens) -> Tensor:
                return torch.cat(
                    (x[start : start + tokens], torch.full((chunk - tokens, *x.shape[1:]), 7.0, dtype=x.dtype))
                )

            positions = torch.arange(start, start + tokens)
            slots = torch.cat((table[0, positions // block] * block + positions % block, torch.arange(chunk - tokens)))
            out = run(
                *npu(padded(q)[None], padded(k), padded(v)), kc, vc,
                *npu(slots.int(), torch.tensor([tokens]), torch.tensor([start + tokens]), table, mask),
            )  # fmt: skip
            pieces.append(out.cpu()[0, :tokens])
    causal = torch.ones(150, 150, dtype=torch.bool).triu(1)
    expected = attend(q, k, v, DIM**-0.5, causal)
    torch.testing.assert_close(torch.cat(pieces).double(), expected, rtol=0, atol=2e-2)
    assert len(loaded) == 1


@pytest.mark.chip(A2)
def test_an_illegal_block_size_is_refused_on_loading() -> None:
    def step(
        q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, slots: Tensor, lens: Tensor, table: Tensor
    ) -> Tensor:
        return attention_block(q, k, v, kc, vc, slots=slots, lengths=lens, table=table)

    half = torch.float16
    inputs = [torch.zeros(1, 4, HEADS, DIM, dtype=half), *(torch.zeros(4, KV_HEADS, DIM, dtype=half) for _ in range(2))]
    inputs += [torch.zeros(BLOCKS, 64, KV_HEADS, DIM, dtype=half) for _ in range(2)]
    inputs += [torch.arange(4, dtype=torch.int32), torch.tensor([4]), torch.zeros(1, 2, dtype=torch.int32)]
    with pytest.raises(GeGraphError, match="multiples of 128"):
        compiled(attention_block)(*npu(*inputs))


@pytest.mark.chip(DUO)
def test_decode_through_incre_flash_attention_over_a_flat_cache() -> None:
    heads = KV_HEADS

    def step(
        q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, slots: Tensor, lens: Tensor, table: Tensor
    ) -> Tensor:
        torch.ops.npu.npu_scatter_nd_update_(kc, slots[:, None], k)
        torch.ops.npu.npu_scatter_nd_update_(vc, slots[:, None], v)
        return torch.ops.ascend.incre_flash_attention(
            q, kc.view(BLOCKS, BLOCK, -1), vc.view(BLOCKS, BLOCK, -1), lens, block_table=table, num_heads=heads,
            num_key_value_heads=heads, scale=0.0625, block_size=BLOCK,
        )  # fmt: skip

    run = compiled(step)
    size = heads * 256
    kc, vc = npu(*(torch.zeros(BLOCKS * BLOCK, size, dtype=torch.float16) for _ in range(2)))
    table = torch.tensor([[3, 1, 7], [2, 10, 4]], dtype=torch.int32)
    history: list[list[Tensor]] = [[], []]
    with recorded_graphs() as loaded:
        for position in range(40):
            q = torch.randn(2, 1, size, dtype=torch.float16)
            new = torch.randn(2, 2, size, dtype=torch.float16)
            history[0].append(new[0])
            history[1].append(new[1])
            slots = table[:, position // BLOCK] * BLOCK + position % BLOCK
            lens = torch.full((2,), position + 1)
            out = run(*npu(q, new[0], new[1]), kc, vc, *npu(slots, lens, table)).cpu()
            for row in range(2):
                k, v = (torch.stack(side)[:, row].view(-1, heads, 256) for side in history)
                expected = attend(q[row].view(1, heads, 256), k, v, 0.0625).reshape(1, size)
                torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=2e-3)
    assert len(loaded) == 1
    counts = count_nodes(loaded[0].graph)
    assert counts.copies == {"TensorMove": 0, "Assign": 0, "Transpose": 0, "Cast": 0}, list_graph(loaded[0].graph)


@pytest.mark.chip(DUO)
def test_prefill_through_prompt_flash_attention_with_a_mask() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.ops.npu.npu_prompt_flash_attention(
            q, k, v, atten_mask=mask, num_heads=2, scale_value=0.125, input_layout="BSH", num_key_value_heads=0,
            sparse_mode=0, next_tokens=2147483647,
        )  # fmt: skip

    q, k, v = (torch.randn(1, 20, 128, dtype=torch.float16) for _ in range(3))
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool).triu(1)
    out = compiled(step)(*npu(q, k, v, mask)).cpu()
    expected = attend(*(x[0].view(20, 2, 64) for x in (q, k, v)), 0.125, mask[0, 0]).reshape(20, 128)
    torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=2e-3)
