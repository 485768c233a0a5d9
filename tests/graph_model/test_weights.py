"""The weight plan: what each expression means, how often it reads, what it allocates, and its JSON form."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graph_gemma.graph_model.quantization.int8 import ChannelScale, QuantizedWeight
from graph_gemma.graph_model.weights import (
    CheckpointTensor,
    Concat,
    Expression,
    InverseFrequencies,
    OnePlus,
    PaddingMask,
    Part,
    Slice,
    evaluate,
    from_json,
    rows_of,
    to_json,
)

CPU = torch.device("cpu")


class Checkpoint:
    """Random tensors by name; counts how often each is read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        self.reads: Counter[str] = Counter()

    def read(self, name: str) -> Tensor:
        self.reads[name] += 1
        return self.tensors[name]

    def source(self, name: str, dtype: torch.dtype) -> CheckpointTensor:
        return CheckpointTensor(name, tuple(self.tensors[name].shape), dtype)


def evaluate_one(expression: Expression, checkpoint: Checkpoint) -> Tensor:
    return evaluate([expression], checkpoint.read, CPU)[expression]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_source_is_the_tensor_in_the_wanted_dtype(stored: torch.dtype, wanted: torch.dtype) -> None:
    checkpoint = Checkpoint({"a": (3, 5)}, stored)
    found = evaluate_one(checkpoint.source("a", wanted), checkpoint)
    assert found.dtype == wanted
    assert torch.equal(found, checkpoint.tensors["a"].to(wanted))


@pytest.mark.parametrize("expression", ["source", "weight", "scale", "slice"])
def test_rows_of_a_tensor_are_all_that_is_read(expression: str) -> None:
    checkpoint = Checkpoint({"a": (9, 5)}, torch.bfloat16)
    whole: Expression = {
        "source": checkpoint.source("a", torch.bfloat16),
        "weight": QuantizedWeight("a", (9, 5), torch.bfloat16),
        "scale": ChannelScale("a", (9,), torch.bfloat16),
        "slice": Slice(QuantizedWeight("a", (9, 5), torch.bfloat16), 0, 1, 8),
    }[expression]
    rows_read = []

    def read(name: str, part: Part | None = None) -> Tensor:
        dim, start, stop = part or (0, 0, 9)
        rows_read.append(stop - start)
        return checkpoint.tensors[name].narrow(dim, start, stop - start)

    part = rows_of(whole, 2, 6)
    found = evaluate([part], read, CPU)[part]
    assert rows_read == [4]
    assert torch.equal(found, evaluate([whole], read, CPU)[whole][2:6])
    assert from_json(json.loads(json.dumps(to_json(part)))) == part


def test_concat_joins_along_the_first_dimension() -> None:
    checkpoint = Checkpoint({"a": (3, 5), "b": (1, 5), "c": (4, 5)}, torch.float32)
    parts = tuple(checkpoint.source(name, torch.bfloat16) for name in "abc")
    expression = Concat(parts)

    found = evaluate_one(expression, checkpoint)

    assert torch.equal(found, torch.cat([checkpoint.tensors[name] for name in "abc"]).bfloat16())
    assert (expression.shape, expression.dtype) == ((8, 5), torch.bfloat16)
    assert found.is_contiguous()


def test_concat_of_vectors_and_of_concats() -> None:
    checkpoint = Checkpoint({"a": (2,), "b": (3,)}, torch.float32)
    a, b = (checkpoint.source(name, torch.float32) for name in "ab")
    expression = Concat((a, Concat((b, a))))
    expected = torch.cat([checkpoint.tensors[name] for name in "aba"])
    assert torch.equal(evaluate_one(expression, checkpoint), expected)
    assert expression.shape == (7,)


@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_plus_adds_in_float32_to_the_rounded_weight(model: torch.dtype) -> None:
    checkpoint = Checkpoint({"w": (64,)}, torch.float32)
    expression = OnePlus(checkpoint.source("w", model))

    found = evaluate_one(expression, checkpoint)

    assert found.dtype == expression.dtype == torch.float32
    assert expression.shape == (64,)
    assert torch.equal(found, 1.0 + checkpoint.tensors["w"].to(model).float())


@pytest.mark.parametrize(("theta", "head_dim"), [(10000.0, 256), (500.0, 16), (1e6, 2)])
def test_inverse_frequencies_are_those_of_rotary_embedding(theta: float, head_dim: int) -> None:
    expression = InverseFrequencies(theta, head_dim)
    found = evaluate_one(expression, Checkpoint({}, torch.float32))
    exact = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float64)
    assert found.dtype == expression.dtype == torch.float32
    assert found.shape == expression.shape
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_equal_expressions_are_one_tensor_read_once() -> None:
    """A tied head asks for the embedding a second time."""
    checkpoint = Checkpoint({"embedding": (6, 4), "w": (4,)}, torch.float32)
    embedding, head = (checkpoint.source("embedding", torch.float32) for _ in range(2))
    tensors = evaluate([embedding, OnePlus(checkpoint.source("w", torch.float32)), head], checkpoint.read, CPU)

    assert tensors[embedding] is tensors[head]
    assert len(tensors) == 2
    assert checkpoint.reads == {"embedding": 1, "w": 1}


def test_every_use_of_a_source_reads_it_once() -> None:
    checkpoint = Checkpoint({"q": (4, 4), "k": (2, 4), "v": (2, 4), "w": (4,)}, torch.bfloat16)
    q, k, v, w = (checkpoint.source(name, torch.bfloat16) for name in "qkvw")
    evaluate([Concat((q, k, v)), OnePlus(w), k], checkpoint.read, CPU)
    assert checkpoint.reads == {"q": 1, "k": 2, "v": 1, "w": 1}


def test_nothing_is_read_for_what_the_config_alone_decides() -> None:
    checkpoint = Checkpoint({}, torch.float32)
    evaluate([InverseFrequencies(10000.0, 16)], checkpoint.read, CPU)
    assert not checkpoint.reads


def test_expressions_do_not_write_to_the_checkpoint() -> None:
    """Its tensors are mapped from files."""
    checkpoint = Checkpoint({"a": (4, 4), "w": (4,)}, torch.float32)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    a, w = checkpoint.source("a", torch.float32), checkpoint.source("w", torch.float32)
    tensors = evaluate([a, Concat((a, a)), OnePlus(w)], checkpoint.read, CPU)
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(checkpoint.tensors[name], before[name]) for name in before)


class Allocations(TorchDispatchMode):
    """Bytes of every storage that an op allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given_storages = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given_storages:
            self.sizes.append(result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_concat_is_written_in_place(stored: torch.dtype) -> None:
    """The only allocation is the result: parts are copied, and cast, straight into their rows of it."""
    checkpoint = Checkpoint({"q": (64, 32), "k": (16, 32), "v": (16, 32)}, stored)
    expression = Concat(tuple(checkpoint.source(name, torch.bfloat16) for name in "qkv"))
    with Allocations() as allocations:
        found = evaluate_one(expression, checkpoint)
    assert allocations.sizes == [found.nbytes] == [96 * 32 * 2]


def test_the_allocation_count_would_see_a_temporary() -> None:
    with Allocations() as allocations:
        torch.cat([torch.zeros(4), torch.zeros(4)]).add_(1.0)
    assert sorted(allocations.sizes) == [16, 16, 32]


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
names = st.text(min_size=1, max_size=12)
sources = st.builds(
    CheckpointTensor, names, st.lists(st.integers(0, 1 << 40), min_size=1, max_size=3).map(tuple), dtypes
)
leaves = (
    sources
    | st.builds(OnePlus, sources)
    | st.builds(InverseFrequencies, st.floats(1.0, 1e9), st.integers(1, 512).map(lambda half: 2 * half))
)
expressions = st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=4).map(tuple).map(Concat))


@given(expressions)
def test_json_form_is_read_back_equal(expression: Expression) -> None:
    restored = from_json(json.loads(json.dumps(to_json(expression))))
    assert restored == expression
    assert hash(restored) == hash(expression)
    assert str(restored) == str(expression)


def test_text_reads_as_a_formula() -> None:
    q, k = (CheckpointTensor(f"{name}_proj.weight", (4, 4), torch.bfloat16) for name in "qk")
    assert str(Concat((q, k))) == "cat(q_proj.weight, k_proj.weight)"
    assert str(OnePlus(q)) == "1 + float32(q_proj.weight)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_padding_mask_is_meant_to_be_infinite(dtype: torch.dtype) -> None:
    mask = PaddingMask(4, 3, dtype)
    (found,) = evaluate([mask], {}.__getitem__, torch.device("cpu")).values()
    assert found.tolist() == [0.0, 0.0, 0.0, -float("inf")]
