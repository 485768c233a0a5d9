"""Norms, products, sampling and other ops, lowered and executed; what cannot be lowered is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkout import import_path
from support.chip_processes import A2, DUO
from support.lowered_modules import compare, compiled, npu, rms
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend import engine, standin
from graph_gemma.runners.backends.ascend.printer import count_nodes, list_graph
from graph_gemma.runners.backends.ascend.recording import recorded_graphs
from graph_gemma.runners.backends.ascend.standin import loader

pytestmark = pytest.mark.usefixtures("fresh_compiler")
HEADS, KV_HEADS, DIM, HIDDEN = 4, 2, 64, 96


@pytest.mark.chip(A2)
def test_torchairs_view_optimization_miscompiles() -> None:
    def views(x: Tensor, c: Tensor) -> Tensor:
        heads = x.view(1, 8, 4, 16).transpose(1, 2) * c
        return heads.transpose(1, 2).reshape(1, 8, 64)

    x, c = torch.randn(1, 8, 64), torch.randn(1, 4, 8, 16)
    expected = views(x, c)
    assert torch.equal(compiled(views)(*npu(x, c)).cpu(), expected)
    torch._dynamo.reset()
    with pytest.raises(GeGraphError, match="declared"):  # it loses the second Transpose
        compiled(views, view_optimize=True)(*npu(x, c))


@pytest.mark.chip(A2)
def test_a_decoder_mlp_and_its_norms_match() -> None:
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


@pytest.mark.chip(A2)
def test_our_converters_lower_to_ops_without_copies() -> None:
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


@pytest.mark.chip(A2)
def test_a_quantized_projection_is_exact_in_integers() -> None:
    """Norm and quantize, then a quantized product per column; and a quantize, then a product per token."""
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


@pytest.mark.chip(A2)
def test_a_norm_and_attention_written_out_match() -> None:
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


@pytest.mark.chip(A2)
def test_sampling_ops_match() -> None:
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


@pytest.mark.chip(A2)
def test_elementwise_and_shape_ops_match() -> None:
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


@pytest.mark.chip(A2)
def test_an_assigned_output_is_written_after_results_are_read() -> None:
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


@pytest.mark.chip(A2)
def test_the_chips_name_is_what_cann_says() -> None:
    assert loader.device_name() == "Ascend910B3"


@pytest.mark.chip(DUO)
def test_the_other_chips_name_is_what_cann_says() -> None:
    assert loader.device_name() == "Ascend310P3"


@pytest.mark.chip(A2)
def test_steps_are_lowered_without_the_view_optimization() -> None:
    """Which miscompiles, as another case shows; its default is on."""
    from torchair import CompilerConfig

    assert CompilerConfig().experimental_config.enable_view_optimize
    assert not engine.compiler_config().experimental_config.enable_view_optimize


@pytest.mark.ascend
def test_an_eager_op_is_refused() -> None:
    """In a process of its own: after the error torch_npu does not copy to the device without waiting any more."""
    script = f"""
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.settings.model_settings import cache_directory
standin.load(find_soc({A2!r}), cache_directory(None) / "cann_standin")
import torch
(torch.ones(3).to("npu") + 1).cpu()
"""
    environment = {**os.environ, "PYTHONPATH": import_path()}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr


@pytest.mark.chip(A2)
def test_a_second_soc_is_refused() -> None:
    with pytest.raises(UserError, match="one process per soc"):
        standin.load(find_soc(DUO), Path("."))


@pytest.mark.chip(DUO)
def test_what_the_chip_lacks_is_refused_when_the_graph_is_loaded() -> None:
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
