"""Small modules lowered by torchair over the stand-in and compared with plain torch: run as a script, once per SoC.

python lowered_cases.py SOC CACHE_DIR RESULTS.json runs every case of the SoC and writes {case: error text or ""}.
One process per SoC, because torch_npu keeps the chip's name for its life; a process of its own, because torch_npu
changes torch.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graph_model.ascend import soc as tables
from graph_model.ascend import standin
from graph_model.ascend.ge_graph import GeGraphError
from graph_model.ascend.listing import count_nodes, list_graph
from graph_model.ascend.recording import LoadedGraph, recorded_graphs
from graph_model.errors import UserError

import torch  # isort: skip
from torch import Tensor  # isort: skip

Case = Callable[[], None]
CASES: dict[str, tuple[str, Case]] = {}
A2, DUO = "atlas_800i_a2", "atlas_300i_duo"


def case(soc: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        CASES[function.__name__] = (soc, function)
        return function

    return register


def case_names(soc: str) -> list[str]:
    return [name for name, (of, _) in CASES.items() if of == soc]


def main() -> None:
    soc, cache_dir, results, *only = sys.argv[1:]
    torch.set_num_threads(1)
    assert standin.load(tables.find_soc(soc), Path(cache_dir)) == standin.is_standin()
    outcome = {}
    for name in only or case_names(soc):
        torch._dynamo.reset()
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                CASES[name][1]()
            outcome[name] = ""
        except BaseException:
            outcome[name] = traceback.format_exc()
    Path(results).write_text(json.dumps(outcome))


def compiled(function: Callable[..., Any], *, view_optimize: bool = False) -> Callable[..., Any]:
    import torchair

    config = torchair.CompilerConfig()
    config.experimental_config.enable_view_optimize = view_optimize
    config.experimental_config.frozen_parameter = True
    return torch.compile(
        function, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False, fullgraph=True
    )


def npu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to("npu") for tensor in tensors]


def compare(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0) -> LoadedGraph:
    """The lowered function's outputs equal the function's own, on the CPU."""
    with recorded_graphs() as loaded:
        got = compiled(function)(*npu(*inputs))
    expected = function(*inputs)
    pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for i, (a, b) in enumerate(pairs):
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, msg=lambda m, i=i: f"output {i}: {m}")
    return loaded[0]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.double()
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight.double()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    """By the definition, in float64: q [tokens, heads, D], k and v [keys, kv_heads, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("tnd,knd->ntk", q.double(), k) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("ntk,knd->tnd", scores.softmax(-1), v)


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


@case(A2)
def one_graph_serves_eighty_decode_steps_of_two_sequences() -> None:
    def step(
        q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, slots: Tensor, lens: Tensor, table: Tensor
    ) -> Tensor:
        return attention_block(q, k, v, kc, vc, slots=slots, lengths=lens, table=table)

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


@case(A2)
def a_padded_chunk_after_earlier_chunks_equals_an_unpadded_one() -> None:
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


@case(A2)
def torchairs_view_optimisation_miscompiles_and_is_right_when_off() -> None:
    def views(x: Tensor, c: Tensor) -> Tensor:
        heads = x.view(1, 8, 4, 16).transpose(1, 2) * c
        return heads.transpose(1, 2).reshape(1, 8, 64)

    x, c = torch.randn(1, 8, 64), torch.randn(1, 4, 8, 16)
    expected = views(x, c)
    assert torch.equal(compiled(views)(*npu(x, c)).cpu(), expected)
    torch._dynamo.reset()
    with pytest.raises(GeGraphError, match="declared"):  # it loses the second Transpose
        compiled(views, view_optimize=True)(*npu(x, c))


@case(A2)
def a_decoder_mlp_and_its_norms_match() -> None:
    def block(x: Tensor, residual: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        normed, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, weight, 1e-6)
        hidden = torch.ops.npu.npu_geglu(normed @ gate_up, -1, 1, True)[0]
        return total, hidden @ down

    for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
        torch._dynamo.reset()
        x, residual = torch.randn(5, HIDDEN, dtype=dtype), torch.randn(5, HIDDEN, dtype=dtype)
        weight = torch.rand(HIDDEN, dtype=dtype) + 0.5
        gate_up, down = torch.randn(HIDDEN, 128, dtype=dtype) / 10, torch.randn(64, HIDDEN, dtype=dtype) / 8
        total, out = compiled(block)(*npu(x, residual, weight, gate_up, down))
        added = x + residual
        gate, up = (rms(added, weight, 1e-6) @ gate_up.double()).chunk(2, -1)
        expected = torch.nn.functional.gelu(gate, approximate="tanh") * up @ down.double()
        assert torch.equal(total.cpu(), added)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@case(A2)
def our_converters_lower_to_ops_without_copies() -> None:
    def block(x: Tensor, weight: Tensor, projection: Tensor) -> Tensor:
        return torch.ops.ascend.linear(torch.ops.ascend.gemma_rms_norm(x, weight, 1e-5), projection)

    x, weight = torch.randn(3, HIDDEN, dtype=torch.bfloat16), torch.randn(HIDDEN, dtype=torch.bfloat16)
    projection = torch.randn(32, HIDDEN, dtype=torch.bfloat16) / 10
    with recorded_graphs() as loaded:
        out = compiled(block)(*npu(x, weight, projection)).cpu()
    exact = rms(x, 1 + weight.float(), 1e-5).bfloat16()
    expected = (exact.float() @ projection.float().t()).bfloat16()
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    assert count_nodes(loaded[0].graph).by_type == {"GemmaRmsNorm": 1, "MatMulV2": 1}


@case(A2)
def a_quantised_projection_is_exact_in_integers() -> None:
    """Norm and quantise, then a quantised product per column; and a quantise, then a product per token."""
    x, residual = torch.randn(5, HIDDEN).half(), torch.randn(5, HIDDEN).half()
    gamma, weight = torch.rand(HIDDEN).half() + 0.5, torch.randint(-127, 128, (HIDDEN, 32), dtype=torch.int8)
    scale, zero = torch.full((HIDDEN,), 0.03), torch.full((HIDDEN,), -3, dtype=torch.int32)
    deq = torch.rand(32) * 1e-3 + 1e-4
    packed = (deq.view(torch.int32).long() & 0xFFFFE000) | (1 << 46)
    bias = torch.randint(-1000, 1000, (32,), dtype=torch.int32)

    def block(x: Tensor, residual: Tensor, gamma: Tensor, scale: Tensor, zero: Tensor, weight: Tensor, packed: Tensor,
              bias: Tensor, deq: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        npu_ops = torch.ops.npu
        q, _, total = npu_ops.npu_add_rms_norm_quant(x, residual, gamma, scale, zero)
        out = npu_ops.npu_quant_matmul(q, weight, packed, bias=bias, output_dtype=torch.float16)
        per_token, s = npu_ops.npu_dynamic_quant(total)
        dynamic = npu_ops.npu_quant_matmul(per_token, weight, deq, pertoken_scale=s, output_dtype=torch.float16)
        static = npu_ops.npu_quantize(total, scale[:1].half() * 500, None, torch.qint8, -1, False)
        return q, total, out, per_token, s, dynamic, static

    with recorded_graphs() as loaded:
        got = compiled(block)(*npu(x, residual, gamma, scale, zero, weight, packed, bias, deq))
    q, total, out, per_token, s, dynamic, static = (tensor.cpu() for tensor in got)
    assert torch.equal(total, x + residual)
    normed = rms(total, torch.ones(HIDDEN), 1e-6).half().double() * gamma.double()
    exact = (normed.half().double() / scale.double() + zero.double()).round().clamp(-128, 127)
    assert (q.double() - exact).abs().max() <= 1
    assert ((q.double() - exact) != 0).double().mean() < 0.02
    truncated = (packed & 0xFFFFE000).int().view(torch.float32)
    integers = q.int().long() @ weight.long() + bias
    assert torch.equal(out, (integers.float() * truncated).half())
    assert torch.equal(s, total.float().abs().amax(-1) / 127)
    assert (per_token.double() * s[:, None].double() - total.double()).abs().max() <= 0.51 * s.max()
    assert torch.equal(dynamic, ((per_token.long() @ weight.long()).float() * deq * s[:, None]).half())
    assert torch.equal(static, (total.float() * (scale[0].half() * 500).float()).round().clamp(-128, 127).char())
    counts = count_nodes(loaded[0].graph).by_type
    assert counts["AddRmsNormQuant"] == 1
    assert counts["QuantBatchMatmulV3"] == 2


@case(A2)
def a_norm_and_attention_written_out_match() -> None:
    """What a chip without the fused ops runs: RMS norm, rotary and masked attention over gathered blocks."""
    heads, dim, block = 2, 16, 4

    def step(
        x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, kc: Tensor, vc: Tensor, table: Tensor, lens: Tensor
    ) -> Tensor:
        x32 = x.float()
        normed = (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + weight.float())).to(x.dtype)
        q = normed.view(2, heads, dim)
        first, second = q.chunk(2, -1)
        q = q * cos + torch.cat((-second, first), -1) * sin
        k = kc.index_select(0, table.reshape(-1)).view(2, -1, heads, dim).transpose(1, 2)
        v = vc.index_select(0, table.reshape(-1)).view(2, -1, heads, dim).transpose(1, 2)
        scores = torch.matmul(q.unsqueeze(2), k.transpose(-1, -2)).float() * 0.25
        hidden = torch.arange(table.shape[1] * block, device=x.device) >= lens[:, None]
        weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).to(x.dtype)
        return torch.matmul(weights, v).reshape(2, heads * dim)

    half = torch.float16
    x, weight = torch.randn(2, heads * dim, dtype=half), torch.randn(heads * dim, dtype=half)
    angle = torch.rand(2, 1, dim)
    caches = [torch.randn(6, block, heads * dim, dtype=half) for _ in range(2)]
    table, lens = torch.tensor([[3, 0, 5], [1, 2, 4]]), torch.tensor([5, 12])
    compare(step, x, weight, angle.cos().to(half), angle.sin().to(half), *caches, table, lens, tolerance=2e-3)


@case(A2)
def sampling_ops_match() -> None:
    def sample(logits: Tensor, uniform: Tensor, top_k: Tensor) -> tuple[Tensor, ...]:
        scores, order = logits.sort(dim=-1, descending=True)
        ranks = torch.arange(logits.shape[-1], device=logits.device)
        kept = scores.masked_fill(ranks >= top_k[:, None], float("-inf"))
        cdf = kept.softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(cdf, uniform[:, None], right=True).clamp(max=logits.shape[-1] - 1)
        token = order.gather(-1, chosen).squeeze(-1)
        logprobs = torch.log_softmax(logits, -1)
        best, ids = logprobs.topk(3, -1)
        return token, logprobs.gather(-1, token[:, None]).squeeze(-1), best, ids, logits.argmax(-1)

    compare(sample, torch.randn(4, 50), torch.rand(4), torch.tensor([1, 5, 50, 20]), tolerance=1e-6)


@case(A2)
def elementwise_and_shape_ops_match() -> None:
    def mixed(x: Tensor, y: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * x,
            torch.cat((-x[:, 4:], x[:, :4]), -1),
            torch.stack((x, y)).transpose(0, 1).reshape(-1),
            torch.where((x > 0) & (y <= 1.0), x, y),
            x.index_select(0, i),
            torch.nn.functional.embedding(i, y),
            (x / (y.abs() + 1)).exp().sum(-1),
            x.max(-1).values - y.abs().max(),
            (i * 3 + 1) % 4,
            i // 2,
            x.unsqueeze(1).expand(-1, 3, -1).sum(1),
            x.cos() * y.sin() + x.tanh(),
            torch.maximum(x, y) - torch.minimum(x, y),
            x.split((3, 5), -1)[1] * 2.0,
            y.half().float(),
            (torch.arange(6, device=x.device)[:, None] >= i[None]).float(),
            x.flip(-1),
            i.repeat(2),
            torch.zeros_like(x) + 1,
            x.sigmoid() - 0.5 * y,
            torch.tril(x[:, :4]),
        )

    loaded = compare(mixed, torch.randn(4, 8), torch.randn(4, 8), torch.tensor([0, 3, 1]), tolerance=2e-6)
    assert list_graph(loaded.graph) == list_graph(loaded.graph)


@case(A2)
def an_assigned_output_is_written_after_all_results_are_read() -> None:
    def swap(a: Tensor, b: Tensor) -> Tensor:
        old = a.clone()
        a.copy_(b)
        b.copy_(old)
        return old + 1

    a, b = npu(torch.arange(4.0), torch.arange(4.0) + 10)
    out = compiled(swap)(a, b)
    assert a.cpu().tolist() == [10, 11, 12, 13]
    assert b.cpu().tolist() == [0, 1, 2, 3]
    assert out.cpu().tolist() == [1, 2, 3, 4]


@case(A2)
def eager_ops_and_a_second_soc_are_refused() -> None:
    x = torch.ones(3).to("npu")
    with pytest.raises(RuntimeError):
        (x + 1).cpu()
    with pytest.raises(UserError, match="one process per soc"):
        standin.load(tables.find_soc(DUO), Path("."))


@case(A2)
def an_illegal_block_size_is_refused_when_the_graph_is_loaded() -> None:
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


@case(DUO)
def decode_through_incre_flash_attention_over_a_flat_cache() -> None:
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


@case(DUO)
def prefill_through_prompt_flash_attention_with_a_mask() -> None:
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


@case(DUO)
def what_the_chip_lacks_is_refused_when_the_graph_is_loaded() -> None:
    half, ones = torch.ones(2, 32).half(), torch.ones(32)
    for match, function, inputs in (
        ("bfloat16", lambda x: x + 1, [torch.ones(3, dtype=torch.bfloat16)]),
        ("no such op", torch.ops.ascend.gemma_rms_norm, [half, ones.half()]),
        (
            "x's dtype",
            lambda x, w: torch.ops.npu.npu_rms_norm(x, w, 1e-6)[0],
            [half, ones],
        ),
    ):
        torch._dynamo.reset()
        with pytest.raises(GeGraphError, match=match):
            compiled(lambda *args, function=function: function(*args))(*npu(*inputs))


def collectives(rank: int, store: str, cache_dir: str) -> None:
    """One rank of two: the collectives of a tensor-parallel step, lowered and executed."""
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    standin.load(tables.ATLAS_800I_A2, Path(cache_dir))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        group = dist.group.WORLD
        return (
            functional.all_reduce(x, "sum", group),
            functional.all_gather_tensor(x, 0, group),
            functional.reduce_scatter_tensor(x, "sum", 0, group),
        )

    parts = [torch.arange(4.0).bfloat16() + 1, torch.arange(4.0).bfloat16() * 10]
    with recorded_graphs() as loaded, torch.no_grad():
        reduced, gathered, scattered = compiled(step)(parts[rank].to("npu"))
    total = parts[0] + parts[1]
    assert torch.equal(reduced.cpu(), total)
    assert torch.equal(gathered.cpu(), torch.cat(parts))
    assert torch.equal(scattered.cpu(), total.chunk(2)[rank])
    kinds = count_nodes(loaded[0].graph).by_type
    assert {"HcomAllReduce", "HcomAllGather", "HcomReduceScatter"} <= kinds.keys(), kinds
    dist.destroy_process_group()


if __name__ == "__main__" and sys.argv[1] == "collectives":
    collectives(int(sys.argv[2]), *sys.argv[3:])
elif __name__ == "__main__":
    main()
