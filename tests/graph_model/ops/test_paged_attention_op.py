"""gemma.paged_attention against dense attention in float64, row by row, written out from its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model import ops

HEAD_DIM = 8
SCALE = 0.21  # not head_dim ** -0.5: the op must use what it is given
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HEADS = {"one_kv_head": (4, 1), "grouped_heads": (6, 2), "as_many_kv_heads": (3, 3)}


@dataclass
class Row:
    """A sequence with `past` tokens in its blocks and `new` tokens in this step."""

    past: int
    new: int


@dataclass
class Case:
    """A step over rows, its padded arguments, and what the rows' keys and values are."""

    arguments: dict[str, Any]
    rows: list[Row]
    keys: list[Tensor]  # per row [past + new, kv_heads, head_dim]
    values: list[Tensor]
    window: int | None = None
    softcap: float | None = None

    def run(self) -> Tensor:
        return ops.paged_attention(**self.arguments, scale=SCALE, window=self.window, softcap=self.softcap)


def make_case(
    rows: list[Row],
    heads: tuple[int, int] = (4, 1),
    block_size: int = 16,
    width: int = 3,
    chunk: int | None = None,
    padded_rows: int = 0,
    paged: bool = True,
    dtype: torch.dtype = torch.float32,
    outside: float = math.nan,
    seed: int = 0,
    window: int | None = None,
    softcap: float | None = None,
) -> Case:
    """Blocks in random order; `outside` fills every key and value that no row may see.

    The first blocks are scratch, one slot for each padded token. Without `paged` the op gets no block table.
    """
    generator = torch.Generator().manual_seed(seed)
    num_heads, kv_heads = heads
    chunk = chunk or max(row.new for row in rows)
    batch = len(rows) + padded_rows
    scratch_blocks = -(-batch * chunk // block_size)
    num_blocks = scratch_blocks + len(rows) * width + 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query = normal(batch, chunk, num_heads, HEAD_DIM)
    key, value = (torch.full((batch, chunk, kv_heads, HEAD_DIM), outside, dtype=dtype) for _ in range(2))
    caches = [torch.full((num_blocks, block_size, kv_heads, HEAD_DIM), outside, dtype=dtype) for _ in range(2)]
    slots = torch.arange(batch * chunk).view(batch, chunk)
    table = torch.zeros(batch, width, dtype=torch.int64)
    query_lens, context_lens = torch.ones(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)
    shuffled = (scratch_blocks + torch.randperm(num_blocks - scratch_blocks, generator=generator)).tolist()
    keys, values = [], []
    for index, row in enumerate(rows):
        length = row.past + row.new
        blocks = [shuffled.pop() for _ in range(-(-length // block_size))]
        table[index, : len(blocks)] = torch.tensor(blocks)
        keys.append(normal(length, kv_heads, HEAD_DIM))
        values.append(normal(length, kv_heads, HEAD_DIM))
        places = [(blocks[t // block_size], t % block_size) for t in range(length)]
        for t in range(row.past):
            caches[0][places[t]], caches[1][places[t]] = keys[-1][t], values[-1][t]
        for t in range(row.new):
            block, offset = places[row.past + t]
            slots[index, t] = block * block_size + offset
        key[index, : row.new], value[index, : row.new] = keys[-1][row.past :], values[-1][row.past :]
        query_lens[index], context_lens[index] = row.new, length
    arguments: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "key_cache": caches[0],
        "value_cache": caches[1],
        "slot_mapping": slots,
        "query_lens": query_lens,
        "context_lens": context_lens if paged else None,
        "block_table": table if paged else None,
    }
    return Case(arguments, rows, keys, values, window, softcap)


def dense(case: Case, row: int, token: int) -> Tensor:
    """Attention of one new token over all keys up to its own, in float64: [heads, head_dim]."""
    query = case.arguments["query"]
    end = case.rows[row].past + token + 1
    visible = slice(0 if case.window is None else max(0, end - case.window), end)
    keys, values = case.keys[row][visible].double(), case.values[row][visible].double()
    group = query.shape[2] // keys.shape[1]
    result = torch.empty(query.shape[2], HEAD_DIM, dtype=torch.float64)
    for head in range(query.shape[2]):
        scores = keys[:, head // group] @ query[row, token, head].double() * SCALE
        if case.softcap is not None:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        weights = torch.exp(scores - scores.max())
        result[head] = (weights / weights.sum()) @ values[:, head // group]
    return result


def assert_right(case: Case, found: Tensor) -> None:
    query = case.arguments["query"]
    assert found.shape == query.shape
    assert found.dtype == query.dtype
    for index, row in enumerate(case.rows):
        for token in range(row.new):
            expected = dense(case, index, token)
            error = (found[index, token].double() - expected).abs().max().item()
            assert error <= TOLERANCE[query.dtype] * max(1.0, expected.abs().max().item()), (index, token)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 31, 32, 33, 48])
def test_decode(heads: tuple[int, int], context: int) -> None:
    case = make_case([Row(context - 1, 1), Row(20, 1)], heads)
    case.arguments["query_lens"] = None
    assert_right(case, case.run())


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("new", [1, 2, 15, 16, 17, 40])
def test_prefill_on_its_own_keys(heads: tuple[int, int], new: int) -> None:
    case = make_case([Row(0, new), Row(0, max(1, new - 3))], heads, paged=False)
    assert_right(case, case.run())


def test_prefill_without_lengths_takes_every_token() -> None:
    case = make_case([Row(0, 9), Row(0, 9)], paged=False)
    case.arguments["query_lens"] = None
    assert_right(case, case.run())


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    ("past", "new"),
    [(0, 1), (0, 16), (1, 15), (1, 16), (15, 1), (15, 2), (16, 1), (16, 16), (17, 31), (31, 17), (47, 1)],
)
def test_extend_at_every_block_boundary(heads: tuple[int, int], past: int, new: int) -> None:
    case = make_case([Row(past, new), Row(5, 3)], heads, chunk=max(new, 4))
    assert_right(case, case.run())


def test_extend_from_the_start_is_prefill() -> None:
    rows = [Row(0, 19), Row(0, 7)]
    paged, own = make_case(rows), make_case(rows, paged=False)
    torch.testing.assert_close(paged.run()[0], own.run()[0], rtol=0, atol=2e-6)


def test_extend_by_one_token_is_decode() -> None:
    rows = [Row(0, 1), Row(16, 1), Row(40, 1)]
    extend, decode = make_case(rows, chunk=4), make_case(rows)
    decode.arguments["query_lens"] = None
    assert_right(decode, decode.run())
    for index in range(len(rows)):
        extend.arguments["query"][index, 0] = decode.arguments["query"][index, 0]
    case = Case(extend.arguments, rows, extend.keys, extend.values)
    assert_right(case, case.run())


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_other_block_sizes(block_size: int) -> None:
    lengths = [1, block_size - 1, block_size, block_size + 1, 2 * block_size]
    decode = make_case([Row(length - 1, 1) for length in lengths], block_size=block_size, width=2)
    decode.arguments["query_lens"] = None
    assert_right(decode, decode.run())
    extend = make_case([Row(length - 1, 1 + i) for i, length in enumerate(lengths)], block_size=block_size, width=3)
    assert_right(extend, extend.run())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("paged", "rows"), [(False, [Row(0, 20)]), (True, [Row(13, 9)]), (True, [Row(30, 1)])])
def test_16_bit_is_as_near_as_its_rounding(dtype: torch.dtype, paged: bool, rows: list[Row]) -> None:
    case = make_case(rows, (4, 2), dtype=dtype, paged=paged)
    assert_right(case, case.run())


@pytest.mark.parametrize("phase", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_nothing_outside_the_context_reaches_the_result(phase: str, outside: float) -> None:
    """Unwritten slots, other rows' blocks, padded tokens and padded rows: the result has the same bits."""
    new = {"prefill": 10, "extend": 6, "decode": 1}[phase]
    past = {"prefill": 0, "extend": 17, "decode": 21}[phase]
    rows = [Row(past, new), Row(past // 2, max(1, new - 3))]

    def run(filling: float) -> Tensor:
        case = make_case(rows, padded_rows=2, paged=phase != "prefill", outside=filling)
        found = case.run()
        assert_right(case, found)
        return torch.cat([found[index, : row.new] for index, row in enumerate(rows)])

    found = run(outside)

    assert found.isfinite().all()
    assert torch.equal(found, run(0.0))


@pytest.mark.parametrize("paged", [False, True])
def test_padding_computes_finite_numbers(paged: bool) -> None:
    case = make_case([Row(0, 9), Row(0, 2)], padded_rows=3, paged=paged, outside=1.0)
    assert case.run().isfinite().all()


def test_unused_entries_of_the_block_table_are_ignored() -> None:
    rows = [Row(3, 2), Row(16, 1)]
    case, other = make_case(rows), make_case(rows)
    table = other.arguments["block_table"]
    table[0, 1:] = table[1, 0]
    table[1, 2:] = table[0, 0]
    found, other_found = case.run(), other.run()
    for index, row in enumerate(rows):
        assert torch.equal(found[index, : row.new], other_found[index, : row.new])


@pytest.mark.parametrize("phase", ["prefill", "extend", "decode"])
def test_caches_are_written_at_the_slots_and_nowhere_else(phase: str) -> None:
    rows = {"prefill": [Row(0, 20), Row(0, 5)], "extend": [Row(14, 5), Row(0, 7)], "decode": [Row(16, 1), Row(31, 1)]}
    case = make_case(rows[phase], (4, 2), padded_rows=1, paged=phase != "prefill", outside=7.0)
    arguments = {name: value for name, value in case.arguments.items() if value is not None}
    expected = {}
    for cache, new in (("key_cache", "key"), ("value_cache", "value")):
        flat = arguments[cache].clone().flatten(0, 1)
        for slot, token in zip(arguments["slot_mapping"].flatten().tolist(), arguments[new].flatten(0, 1), strict=True):
            flat[slot] = token
        expected[cache] = flat.view_as(arguments[cache])
    others = {name: value.clone() for name, value in arguments.items() if name not in expected}

    case.run()

    assert torch.equal(arguments["key_cache"], expected["key_cache"])
    assert torch.equal(arguments["value_cache"], expected["value_cache"])
    assert all(torch.equal(arguments[name], value) for name, value in others.items())


def test_a_prompt_may_come_in_chunks() -> None:
    """Chunks through the cache give what the whole prompt gives."""
    whole = make_case([Row(0, 30)], paged=False)
    query, key, value = (whole.arguments[name] for name in ("query", "key", "value"))
    caches = [torch.full((5, 16, 1, HEAD_DIM), math.nan) for _ in range(2)]
    blocks = torch.tensor([[3, 1]])
    pieces = []
    for start, end in ((0, 7), (7, 16), (16, 17), (17, 30)):
        positions = torch.arange(start, end)
        slots = (blocks[0, positions // 16] * 16 + positions % 16)[None]
        lens = torch.tensor([end - start]), torch.tensor([end])
        new = [tensor[:, start:end] for tensor in (query, key, value)]
        pieces.append(ops.paged_attention(*new, *caches, slots, *lens, blocks, SCALE))
    torch.testing.assert_close(torch.cat(pieces, 1), whole.run(), rtol=0, atol=2e-6)


def test_rows_do_not_depend_on_each_other() -> None:
    rows = [Row(20, 4), Row(0, 6), Row(7, 1)]
    case = make_case(rows, chunk=6)
    found = case.run()
    for index in range(len(rows)):
        batched = ("query", "key", "value", "slot_mapping", "query_lens", "context_lens", "block_table")
        single = {n: v[index : index + 1] if n in batched else v for n, v in case.arguments.items() if v is not None}
        alone = ops.paged_attention(**single, scale=SCALE)
        torch.testing.assert_close(alone[0, : rows[index].new], found[index, : rows[index].new], rtol=0, atol=1e-6)


WINDOWS = [1, 15, 16, 17, 30]


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", WINDOWS)
def test_decode_sees_its_window(window: int, softcap: float | None) -> None:
    """Contexts one below, at and one above the window and the blocks, in tables that are wider than the window."""
    lengths = sorted({1, 15, 16, 17, 33, 64, window - 1, window, window + 1, 2 * window + 1} - {0})
    rows = [Row(length - 1, 1) for length in lengths]
    case = make_case(rows, width=6, window=window, softcap=softcap)
    case.arguments["query_lens"] = None
    assert_right(case, case.run())


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", WINDOWS)
def test_prompts_see_their_window(window: int, softcap: float | None) -> None:
    """Prompts as long as a window's tiles, and short ones next to long ones, whose tiles are padding."""
    for tokens in {window, window + 1, 2 * window, 2 * window + 1, 3 * window - 1, 3 * window, 3 * window + 1, 64}:
        rows = [Row(0, tokens), Row(0, 1), Row(0, max(1, window - 1))]
        case = make_case(rows, paged=False, padded_rows=1, window=window, softcap=softcap, width=6)
        found = case.run()
        assert_right(case, found)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("past", "new"), [(0, 16), (1, 15), (15, 2), (16, 16), (17, 31), (31, 17), (47, 1), (60, 30)])
def test_chunks_see_their_window(past: int, new: int, window: int) -> None:
    case = make_case([Row(past, new), Row(5, 3), Row(40, 1)], (4, 2), chunk=max(new, 4), width=6, window=window)
    assert_right(case, case.run())


def test_a_row_reads_the_blocks_of_its_window_only() -> None:
    """Not even NaN in older blocks reaches the result; a table so short that all is read is masked as well."""
    for width in (2, 6):
        past = width * 16 - 2
        case = make_case([Row(past, 1)], width=width, window=5)
        case.arguments["query_lens"] = None
        older = case.arguments["block_table"][0, : width - 1]
        expected = case.run()
        for cache in (case.arguments["key_cache"], case.arguments["value_cache"]):
            cache[older] = 1e4
        assert torch.equal(case.run(), expected)


@pytest.mark.parametrize("paged", [False, True])
def test_padding_is_finite_with_a_window(paged: bool) -> None:
    case = make_case([Row(0, 40), Row(0, 2)], padded_rows=3, paged=paged, outside=1.0, window=3, width=6)
    found = case.run()
    assert_right(case, found)
    assert found.isfinite().all()


@pytest.mark.parametrize("paged", [False, True])
def test_schema_fake_kernel_and_mutation_are_as_declared(paged: bool) -> None:
    case = make_case([Row(0, 5), Row(0, 3)], (4, 2), paged=paged, outside=0.0)
    torch.library.opcheck(ops.paged_attention, (*case.arguments.values(), SCALE))
