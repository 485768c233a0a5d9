"""The formulas themselves: against torch's own functions, and there is one for every op of the golden listings."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from support.data import LISTINGS

from graph_gemma.runners.verification import oracle as formulas
from graph_gemma.runners.verification.oracle import FORMULAS


def test_every_op_of_the_reviewed_graphs_has_a_formula() -> None:
    """But for collectives, which no device runs alone."""
    types: set[str] = set()
    for listing in LISTINGS.glob("*.txt"):
        found = re.search(r"^ops: (.*)$", listing.read_text(), re.MULTILINE)
        assert found, listing
        types |= {name for entry in found[1].split(", ") if not (name := entry.split()[0]).startswith("Hcom")}
    assert len(types) > 25
    assert types - FORMULAS.keys() == set()


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, heads, 16) for heads in (4, 2, 2))
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = F.scaled_dot_product_attention(
        *(x.double().transpose(0, 1) for x in (q, k, v)), attn_mask=~hidden, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(formulas.attention(q, k, v, 0.3, hidden), expected.transpose(0, 1))


def test_paged_attention_reads_the_rows_blocks_up_to_its_length() -> None:
    torch.manual_seed(0)
    cache = torch.randn(4, 16, 32)
    keys = torch.cat((cache[2], cache[0]))[:20].view(20, 2, 16)
    q = torch.randn(1, 1, 4, 16)
    inputs = {"query": q, "key": [cache], "value": [cache], "block_table": torch.tensor([[2, 0]])}
    attrs = {"num_heads": 4, "num_key_value_heads": 2, "scale": 0.3, "input_layout": "BSND"}
    (out,) = FORMULAS["FusedInferAttentionScore"](inputs | {"actual_seq_lengths_kv": torch.tensor([20])}, attrs)
    torch.testing.assert_close(out[0], formulas.attention(q[0], keys, keys, 0.3))


def test_activations_and_norms_are_torchs() -> None:
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    for form in ("tanh", "none"):
        torch.testing.assert_close(formulas.gelu(x, form == "tanh"), F.gelu(x, approximate=form))
    gamma = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(formulas.rms_norm(x, gamma, 1e-5), F.rms_norm(x, (50,), gamma, 1e-5))


def test_shape_formulas_are_torchs() -> None:
    x = torch.arange(24.0, dtype=torch.float64).view(2, 3, 4)
    index = torch.tensor([[[1, 0, 3]], [[2, 2, 0]]])

    def of(op: str, *inputs: object, **attrs: object) -> torch.Tensor:
        names = {"GatherV2": ("x", "indices", "axis"), "GatherElements": ("x", "index"), "Cumsum": ("x", "axis")}
        return FORMULAS[op](dict(zip(names.get(op, ("x", "axes")), inputs, strict=False)), attrs)[0]

    torch.testing.assert_close(of("GatherV2", x, torch.tensor([[2, 0]]), torch.tensor(1)), x[:, [[2, 0]]])
    torch.testing.assert_close(of("GatherElements", x, index, dim=2), x.gather(2, index))
    torch.testing.assert_close(of("Cumsum", x, torch.tensor(1)), x.cumsum(1))
    torch.testing.assert_close(of("ReduceSum", x, torch.tensor([0, 2])), x.sum((0, 2)))
    torch.testing.assert_close(of("ReduceMax", x, torch.tensor([1]), keep_dims=True), x.amax(1, keepdim=True))
    torch.testing.assert_close(of("SoftmaxV2", x, axes=[-1]), x.softmax(-1))
    torch.testing.assert_close(of("Sort", x, descending=True), x.sort(descending=True).values)
