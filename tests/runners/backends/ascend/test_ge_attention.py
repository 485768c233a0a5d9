"""Fused attention in the GE interpreter against attention by its definition, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.attention import (
    fused_infer_attention_score,
    incre_flash_attention,
    prompt_flash_attention,
)
from graph_gemma.runners.verification import oracle as formulas

DIM = 32
SCALE = 0.2
CAUSAL_MASK = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def reference(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    return formulas.attention(q, k, v, SCALE, hidden)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = 2e-3 if got.dtype is torch.float16 else 2e-2
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def make_cache(rows: list[Tensor], table: Tensor, block_size: int, blocks: int) -> Tensor:
    """[blocks, block_size, kv_heads * D] with each row's [tokens, kv_heads, D] where the table says, NaN elsewhere."""
    cache = torch.full((blocks, block_size, rows[0][0].numel()), math.nan, dtype=rows[0].dtype)
    for row, tokens in enumerate(rows):
        for position, token in enumerate(tokens):
            cache[table[row, position // block_size], position % block_size] = token.flatten()
    return cache


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("lengths", [[1, 16], [15, 17], [32, 48]])
def test_paged_decode_at_block_boundaries(dtype: torch.dtype, heads: int, kv_heads: int, lengths: list[int]) -> None:
    torch.manual_seed(1)
    table = torch.tensor([[4, 0, 2], [5, 1, 3]], dtype=torch.int32)
    keys, values = ([torch.randn(n, kv_heads, DIM).to(dtype) for n in lengths] for _ in range(2))
    q = torch.randn(2, 1, heads, DIM).to(dtype)
    out, _ = fused_infer_attention_score(
        q.flatten(2),
        [make_cache(keys, table, 16, 6)],
        [make_cache(values, table, 16, 6)],
        actual_seq_lengths_kv=torch.tensor(lengths),
        block_table=table,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale=SCALE,
        block_size=16,
    )
    for row in range(2):
        close(out[row].unflatten(-1, (heads, DIM)), reference(q[row], keys[row], values[row]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("lengths", [[1, 32], [31, 33], [64, 96]])
def test_paged_decode_on_an_int8_cache(dtype: torch.dtype, kv_heads: int, lengths: list[int]) -> None:
    torch.manual_seed(7)
    table = torch.tensor([[4, 0, 2], [5, 1, 3]], dtype=torch.int32)
    q = torch.randn(2, 1, 4, DIM).to(dtype)
    caches, scales, numbers = [], [], []
    for _ in range(2):
        rows = [torch.randint(-128, 128, (n, kv_heads, DIM), dtype=torch.int8) for n in lengths]
        of_rows = [torch.rand(n, kv_heads) / 64 for n in lengths]
        cache = torch.zeros(6, 32, kv_heads * DIM, dtype=torch.int8)
        by_block = torch.full((6, kv_heads, 32), math.nan)
        for row, (tokens, factors) in enumerate(zip(rows, of_rows, strict=True)):
            for position, (token, factor) in enumerate(zip(tokens, factors, strict=True)):
                block, place = table[row, position // 32], position % 32
                cache[block, place] = token.flatten()
                by_block[block, :, place] = factor
        caches.append(cache)
        scales.append(by_block)
        numbers.append([tokens.double() * f[..., None] for tokens, f in zip(rows, of_rows, strict=True)])
    out, _ = int8_decode(q, caches, scales, table, torch.tensor(lengths))
    for row in range(2):
        close(out[row], reference(q[row], numbers[0][row], numbers[1][row]))


def int8_decode(
    q: Tensor, caches: list[Tensor], scales: list[Tensor], table: Tensor | None, lengths: Tensor, mode: int = 5
) -> tuple[Tensor, Tensor]:
    return fused_infer_attention_score(
        q,
        [caches[0]],
        [caches[1]],
        actual_seq_lengths_kv=lengths,
        block_table=table,
        key_antiquant_scale=scales[0],
        value_antiquant_scale=scales[1],
        num_heads=q.shape[2],
        num_key_value_heads=scales[0].shape[1],
        scale=SCALE,
        input_layout="BSND",
        block_size=32,
        key_antiquant_mode=mode,
        value_antiquant_mode=mode,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": 3}, "antiquant modes"),
        ({"q": torch.zeros(1, 2, 4, DIM).half()}, "one query token"),
        ({"scales": [torch.ones(2, 1, 16)] * 2}, "mode 5 takes"),
        ({"scales": [torch.ones(2, 1, 32).half()] * 2}, "antiquant_scale"),
        ({"caches": [torch.zeros(2, 32, DIM).half()] * 2}, "int8"),
    ],
)
def test_an_int8_cache_that_the_kernel_does_not_take_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "q": torch.zeros(1, 1, 4, DIM).half(),
        "caches": [torch.zeros(2, 32, DIM, dtype=torch.int8)] * 2,
        "scales": [torch.ones(2, 1, 32)] * 2,
        "table": torch.tensor([[1]], dtype=torch.int32),
        "lengths": torch.tensor([5]),
    }
    int8_decode(**arguments)  # type: ignore[arg-type]
    with pytest.raises(GeGraphError, match=message):
        int8_decode(**arguments | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [1, 4, 127, 128, 129, 200, None])
def test_a_padded_chunk_after_context_equals_the_unpadded_one(window: int | None) -> None:
    """With a window of W the band of pre_tokens = W - 1."""
    torch.manual_seed(2)
    band = {"sparse_mode": 3} if window is None else {"sparse_mode": 4, "pre_tokens": window - 1, "next_tokens": 0}
    heads, kv_heads, block = 4, 2, 128
    table = torch.tensor([[1, 3], [2, 0]], dtype=torch.int32)
    kv_lens, q_lens, chunk = [130, 7], [5, 7], 8
    keys, values = ([torch.randn(n, kv_heads, DIM).half() for n in kv_lens] for _ in range(2))
    q = torch.randn(2, chunk, heads, DIM).half()
    caches = [make_cache(side, table, block, 4) for side in (keys, values)]
    out, _ = fused_infer_attention_score(
        q,
        [caches[0]],
        [caches[1]],
        CAUSAL_MASK,
        torch.tensor(q_lens),
        torch.tensor(kv_lens),
        table,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale=SCALE,
        input_layout="BSND",
        block_size=block,
        **band,
    )
    for row, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        own = torch.arange(kv_len - q_len, kv_len)[:, None]
        hidden = (torch.arange(kv_len) > own) | (torch.arange(kv_len) <= own - (window or kv_len))
        close(out[row, :q_len], reference(q[row, :q_len], keys[row], values[row], hidden))
        assert not out[row, q_len:].any()


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_layouts_agree(layout: str) -> None:
    torch.manual_seed(3)
    q, k, v = torch.randn(2, 5, 4, DIM).half(), torch.randn(2, 5, 2, DIM).half(), torch.randn(2, 5, 2, DIM).half()

    def arranged(x: Tensor) -> Tensor:
        return {"BSH": x.flatten(2), "BSND": x, "BNSD": x.transpose(1, 2)}[layout]

    out, lse = fused_infer_attention_score(
        arranged(q),
        [arranged(k)],
        [arranged(v)],
        CAUSAL_MASK.to(torch.int8),
        num_heads=4,
        num_key_value_heads=2,
        scale=SCALE,
        input_layout=layout,
        sparse_mode=3,
    )
    assert lse.numel() == 0
    assert out.shape == arranged(q).shape
    assert out.is_contiguous()
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for row in range(2):
        close(out[row], arranged(reference(q[row], k[row], v[row], hidden)[None])[0])


def test_paged_cache_in_head_major_blocks() -> None:
    torch.manual_seed(4)
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    k, v = ([torch.randn(20, 2, DIM).half()] for _ in range(2))
    caches = [make_cache(x, table, 16, 2).unflatten(-1, (2, DIM)).transpose(1, 2).contiguous() for x in (k, v)]
    q = torch.randn(1, 2, 1, DIM).half()
    out, _ = fused_infer_attention_score(
        q,
        [caches[0]],
        [caches[1]],
        actual_seq_lengths_kv=torch.tensor([20]),
        block_table=table,
        num_heads=2,
        num_key_value_heads=2,
        scale=SCALE,
        input_layout="BNSD",
        block_size=16,
    )
    close(out[0].transpose(0, 1), reference(q[0].transpose(0, 1), k[0], v[0]))


def test_prompt_attention_limits_its_mask_to_the_band() -> None:
    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 6, 2, DIM).half() for _ in range(3))
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 0] = True
    mask[..., 0, 0] = False
    common = {"num_heads": 2, "num_key_value_heads": 2, "scale_value": SCALE, "input_layout": "BSND"}
    distance = torch.arange(6) - torch.arange(6)[:, None]
    out = prompt_flash_attention(q, k, v, mask, pre_tokens=2, next_tokens=1, **common)  # type: ignore[arg-type]
    close(out[0], reference(q[0], k[0], v[0], mask[0, 0] | (distance > 1) | (distance < -2)))
    # The prototype's default: no later token.
    out = prompt_flash_attention(q, k, v, mask, **common)  # type: ignore[arg-type]
    close(out[0], reference(q[0], k[0], v[0], mask[0, 0] | (distance > 0)))


def test_decode_attention_with_a_mask_per_row_and_no_paging() -> None:
    torch.manual_seed(6)
    q, k, v = (torch.randn(3, n, 2 * DIM).half() for n in (1, 9, 9))
    mask = torch.arange(9) >= torch.tensor([1, 9, 4])[:, None]
    out = incre_flash_attention(q, [k], [v], mask, num_heads=2, num_key_value_heads=2, scale_value=SCALE)
    for row in range(3):
        split = [x[row].unflatten(-1, (2, DIM)) for x in (q, k, v)]
        close(out[row].unflatten(-1, (2, DIM)), reference(*split, mask[row : row + 1]))


NO_MASK = torch.zeros(2048, 2048, dtype=torch.bool)
TWO_TOKENS = {"query": torch.ones(1, 2, DIM).half()}


def decode(**changes: object) -> None:
    inputs: dict[str, object] = {
        "query": torch.ones(1, 1, DIM).half(),
        "key": [torch.ones(4, 16, DIM).half()],
        "value": [torch.ones(4, 16, DIM).half()],
        "actual_seq_lengths_kv": torch.tensor([20]),
        "block_table": torch.tensor([[1, 2]], dtype=torch.int32),
        "num_heads": 1,
        "block_size": 16,
    }
    fused_infer_attention_score(**(inputs | changes))  # type: ignore[arg-type]


def test_unused_entries_of_a_block_table_are_not_read() -> None:
    for length in (17, 32):
        table = torch.tensor([[1, 2, 999]], dtype=torch.int32)
        decode(block_table=table, actual_seq_lengths_kv=torch.tensor([length]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_table": torch.tensor([[1, 4]], dtype=torch.int32)}, "legal are 0 to 3"),
        ({"block_table": torch.tensor([[-1, 2]], dtype=torch.int32)}, "legal are 0 to 3"),
        ({"block_table": torch.tensor([[1, 2]])}, "int32"),
        ({"actual_seq_lengths_kv": torch.tensor([33])}, "legal are 1 to 32"),
        ({"actual_seq_lengths_kv": torch.tensor([0])}, "legal are 1 to 32"),
        ({"actual_seq_lengths_kv": torch.tensor([20], dtype=torch.int32)}, "int64"),
        ({"actual_seq_lengths_kv": None}, "needs the keys' lengths"),
        ({"block_size": 32}, "blocks hold 16"),
        ({"query": torch.ones(1, 1, DIM)}, "float16"),
        ({"input_layout": "TND"}, "TND"),
        ({"sparse_mode": 2, **TWO_TOKENS}, "sparse_mode 2"),
        ({"sparse_mode": 3, **TWO_TOKENS}, "without its mask"),
        ({"sparse_mode": 3, "atten_mask": NO_MASK, **TWO_TOKENS}, "not the causal triangle"),
        ({"sparse_mode": 4, "atten_mask": NO_MASK, **TWO_TOKENS}, "not the causal triangle"),
        ({"sparse_mode": 4, "pre_tokens": -1, "atten_mask": CAUSAL_MASK, **TWO_TOKENS}, "a band from 1"),
        ({"sparse_mode": 3, "atten_mask": CAUSAL_MASK}, "with one query token, for which the op ignores them"),
        ({"sparse_mode": 4, "pre_tokens": 3, "next_tokens": 0}, "one query token, for which the op ignores them"),
        ({"pre_tokens": 3}, "with one query token, for which the op ignores them"),
        ({"softmax_lse_flag": True}, "softmax_lse"),
    ],
)
def test_undefined_and_unknown_attention_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(GeGraphError, match=message):
        decode(**changes)


def test_a_query_that_sees_no_key_is_refused() -> None:
    q, k = torch.ones(1, 3, DIM).half(), torch.ones(1, 2, DIM).half()
    with pytest.raises(GeGraphError, match="would see nothing"):
        fused_infer_attention_score(q, [k], [k], CAUSAL_MASK, num_heads=1, sparse_mode=3)
    with pytest.raises(GeGraphError, match="hides every key"):
        fused_infer_attention_score(q, [k], [k], torch.ones(1, 1, 3, 2, dtype=torch.bool), num_heads=1)


def test_softmax_weights_are_rounded_before_they_meet_the_values() -> None:
    """Two keys of weights 1 and exp(-scale): in bf16 the second is rounded, the sum is not."""
    q = torch.ones(1, 1, 16).bfloat16()
    k, v = torch.zeros(1, 2, 16).bfloat16(), torch.zeros(1, 2, 16).bfloat16()
    k[0, 0, 0] = 1.0
    v[0, 1] = 1.0
    differing = 0
    for step in range(1, 40):
        scale = step / 16  # exact in fp32
        out, _ = fused_infer_attention_score(q, [k], [v], num_heads=1, scale=scale)
        weight = math.exp(-scale)
        rounded = torch.tensor(weight).bfloat16().item()
        assert out[0, 0, 0] == torch.tensor(rounded / (1.0 + weight)).bfloat16()
        differing += bool(out[0, 0, 0] != torch.tensor(weight / (1.0 + weight)).bfloat16())
    assert differing
