"""Quantized ops: integers are exact, values round to even and saturate."""

from __future__ import annotations

import pytest
import torch

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops import quant

FP16, BF16, INT32 = 1, 27, 3


def test_quantizing_rounds_ties_to_even_and_saturates() -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, 200.0, -200.0]]).half()
    one, two = torch.tensor([1.0]).half(), torch.tensor([2.0]).half()
    assert quant.ascend_quant_v2(x, one).tolist() == [[0, 2, 2, 0, 127, -128]]
    assert quant.ascend_quant_v2(x, two, one).tolist() == [[2, 4, 6, 0, 127, -128]]
    assert quant.quantize(x, torch.tensor([[2.0]]), dtype="torch.qint8").tolist() == [[0, 1, 1, 0, 100, -100]]
    with pytest.raises(GeGraphError, match="one dtype"):
        quant.ascend_quant_v2(x, one.float())


@pytest.mark.parametrize("transposed", [False, True])
def test_quantized_products_are_exact(transposed: bool) -> None:
    torch.manual_seed(0)
    a = torch.randint(-128, 128, (3, 2000), dtype=torch.int8)
    b = torch.randint(-128, 128, (2000, 5), dtype=torch.int8)
    bias, scale = torch.randint(-99, 99, (5,), dtype=torch.int32), torch.rand(5) * 1e-3
    integers = a.long() @ b.long() + bias
    stored = b.t().contiguous() if transposed else b
    got = quant.quant_batch_matmul_v3(a, stored, scale, bias=bias, dtype=BF16, transpose_x2=transposed)
    assert torch.equal(got, (integers.float() * scale).bfloat16())
    tokens = torch.rand(3)
    got = quant.quant_batch_matmul_v3(
        a, stored, scale, bias=bias, pertoken_scale=tokens, dtype=FP16, transpose_x2=transposed
    )
    assert torch.equal(got, (integers.float() * scale * tokens[:, None]).half())


def test_integers_of_a_product_are_scaled_apart() -> None:
    torch.manual_seed(0)
    a, b = torch.randint(-128, 128, (3, 70), dtype=torch.int8), torch.randint(-128, 128, (70, 5), dtype=torch.int8)
    bias, one = torch.randint(-99, 99, (5,), dtype=torch.int32), torch.ones(1)
    integers = quant.quant_batch_matmul_v3(a, b, one, bias=bias, dtype=INT32)
    assert torch.equal(integers, (a.long() @ b.long() + bias).int())
    scale = torch.rand(5)
    for number, dtype in ((FP16, torch.float16), (BF16, torch.bfloat16)):
        got = quant.dequant_bias(integers, scale, output_dtype=number)
        assert torch.equal(got, (integers.double() * scale.double()).float().to(dtype))
    with pytest.raises(GeGraphError, match="int32 output with a scale"):
        quant.quant_batch_matmul_v3(a, b, 2 * one, dtype=INT32)
    for arguments in ((integers.float(), scale), (integers, scale[:3]), (integers, scale, torch.ones(3))):
        with pytest.raises(GeGraphError):
            quant.dequant_bias(*arguments, output_dtype=BF16)
    with pytest.raises(GeGraphError, match="16-bit floats"):
        quant.dequant_bias(integers, scale, output_dtype=0)


def test_packed_scales_lose_thirteen_bits() -> None:
    scale = torch.tensor([1.0, 0.3, -0.3, 1e-20])
    packed = quant.trans_quant_param_v2(scale)
    assert bool((packed >> 46 == 1).all())
    unpacked = quant.unpack_scale(packed)
    assert unpacked[0] == 1.0
    assert bool(((unpacked - scale).abs() <= scale.abs() * 2**-10).all())
    assert torch.equal(unpacked.view(torch.int32) & 0x1FFF, torch.zeros(4, dtype=torch.int32))
    assert torch.equal(unpacked.sign(), scale.sign())
    one = torch.ones(1, 16, dtype=torch.int8)
    got = quant.quant_batch_matmul_v3(one, one.t(), quant.trans_quant_param_v2(torch.tensor([0.3])), dtype=FP16)
    assert got.item() == (16 * unpacked[1]).half().item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": FP16}, "int64 scale"),
        ({"dtype": 2}, "output dtype"),
        ({"bias": torch.zeros(1)}, "bias"),
        ({"x1": torch.zeros(1, 4)}, "x1"),
        ({"offset": torch.zeros(1)}, "offset"),
        ({"bias": torch.tensor([2**31 - 1], dtype=torch.int32)}, "overflows"),
    ],
)
def test_other_quantized_products_are_refused(changes: dict[str, object], message: str) -> None:
    ones = torch.ones(1, 4, dtype=torch.int8)
    arguments: dict[str, object] = {"x1": ones, "x2": ones.t(), "scale": torch.ones(1), "dtype": BF16}
    with pytest.raises(GeGraphError, match=message):
        quant.quant_batch_matmul_v3(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_norm_and_quantize(dtype: torch.dtype, per_tensor: bool) -> None:
    torch.manual_seed(0)
    x1, x2, gamma = (torch.randn(*shape).to(dtype) for shape in ((4, 300), (4, 300), (300,)))
    scale = torch.tensor([0.02]) if per_tensor else torch.rand(300) * 0.02 + 0.01
    y, _, total = quant.add_rms_norm_quant(x1, x2, gamma, scale, torch.tensor([4]))
    assert torch.equal(total, x1 + x2)
    wide = (x1.double() + x2.double()).to(dtype).double()
    rounds = dtype is torch.float16 and not per_tensor
    if not rounds:
        wide = x1.double() + x2.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = normed * gamma.double()
    stepwise = (normed.half().double() * gamma.double()).half().double() if rounds else exact

    def differing(values: torch.Tensor) -> float:
        """The share of integers that are not those of `values`; none is further than one away."""
        difference = (y.double() - (values / scale.double() + 4).round().clamp(-128, 127)).abs()
        assert difference.max() <= 1
        return (difference != 0).double().mean().item()

    assert differing(stepwise) < 0.002
    assert not rounds or differing(exact) > 0.002
