"""Attention written out, for what no fused kernel of a chip computes: products, soft-cap, mask and softmax.

Query tokens are taken in tiles, so that scores need memory for a tile's rows, not for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx

from graph_gemma.passes.ascend.operands import Attention
from graph_gemma.passes.ascend.softcap import write_softcap
from graph_gemma.passes.ascend.visible_keys import hidden_keys, is_cut, key_count, token_places

aten = torch.ops.aten

# Bytes that the float32 scores of a tile may take, of all rows and heads together.
TILE_BYTES = 64 << 20
_LEAST_TILE = 16  # query tokens
# Names of the ops that it makes and that no other pass knows.
UNFUSED_OPS = ("ascend.batch_matmul", "aten.masked_fill.Scalar", "aten.permute", "aten.softmax.int", "aten.cat")


def tile_tokens(batch: int, heads: int, tokens: int, keys: int) -> int:
    """How many query tokens of each row are taken at a time: a power of two, or all of them."""
    most = max(TILE_BYTES // (4 * batch * heads * keys), _LEAST_TILE)
    return tokens if tokens <= most else 1 << (most.bit_length() - 1)


def unfused_attention(attention: Attention, cached: Callable[[], Iterable[fx.Node]]) -> fx.Node:
    """softmax(masked(cap(q * scale @ keys))) @ values, [batch, tokens, heads, head_dim]; softmax in float32.

    Keys and values are the step's own in a first chunk, and else what `cached` reads, both [batch, kv_heads, keys,
    head_dim].
    """
    a, call = attention, attention.call
    keys, values = cached() if a.block_table is not None else (_heads_first(a, x) for x in (a.key, a.value))
    group = a.heads // a.kv_heads
    scaled = call(aten.mul.Tensor, a.query, a.scale)
    scaled.meta["attribute"] = "softmax_scale"
    query = scaled
    if a.kv_heads > 1 and a.tokens > 1:  # heads of one key head next to each other, for each token
        query = call(aten.reshape.default, query, [a.batch, a.tokens, a.kv_heads, group, a.head_dim])
        query = call(aten.permute.default, query, [0, 2, 1, 3, 4])
    query = call(aten.reshape.default, query, [a.batch, a.kv_heads, a.tokens * group, a.head_dim])
    size = tile_tokens(a.batch, a.heads, a.tokens, key_count(a))
    tiles = [(first, min(first + size, a.tokens)) for first in range(0, a.tokens, size)]
    results = [_tile(a, query, keys, values, tile, len(tiles)) for tile in tiles]
    result = results[0] if len(results) == 1 else call(aten.cat.default, results, 2)
    if a.kv_heads > 1 and a.tokens > 1:
        result = call(aten.reshape.default, result, [a.batch, a.kv_heads, a.tokens, group, a.head_dim])
        result = call(aten.permute.default, result, [0, 2, 1, 3, 4])
    return call(aten.reshape.default, result, [a.batch, a.tokens, a.heads, a.head_dim])


def gathered_tokens(attention: Attention, cache: fx.Node, by_head: bool) -> fx.Node:
    """The keys or values that a step reads, gathered token by token from a cache [tokens, kv_heads * head_dim].

    [batch, keys, kv_heads, head_dim], a row's last token in place of those beyond it; by_head: [batch, kv_heads, keys,
    head_dim].
    """
    a, call = attention, attention.call
    split = by_head and a.kv_heads > 1
    source = call(aten.reshape.default, cache, [-1, a.head_dim]) if split else cache
    taken = call(aten.index_select.default, source, 0, token_places(a, split))
    shape = [a.kv_heads, key_count(a)] if by_head else [key_count(a), a.kv_heads]
    return call(aten.reshape.default, taken, [a.batch, *shape, a.head_dim])


def _heads_first(attention: Attention, x: fx.Node) -> fx.Node:
    """Keys or values [batch, keys, kv_heads, head_dim] as [batch, kv_heads, keys, head_dim]."""
    a = attention
    if a.kv_heads > 1:
        return a.call(aten.permute.default, x, [0, 2, 1, 3])
    return a.call(aten.reshape.default, x, [a.batch, 1, -1, a.head_dim])


def _tile(
    attention: Attention, query: fx.Node, keys: fx.Node, values: fx.Node, tile: tuple[int, int], tiles: int
) -> fx.Node:
    """The attended values of query tokens [first, last), [batch, kv_heads, tokens * group, head_dim]."""
    a, call = attention, attention.call
    (first, last), group, count = tile, a.heads // a.kv_heads, key_count(a)
    if tiles > 1:
        query = call(aten.slice.Tensor, query, 2, first * group, last * group)
    low, high = _keys_of_tile(a, first, last)
    if (low, high) != (0, count):
        keys, values = (call(aten.slice.Tensor, x, 2, low, high) for x in (keys, values))
    scores = call(aten.to.dtype, call(torch.ops.ascend.batch_matmul.default, query, keys, True), torch.float32)
    if a.softcap is not None:
        scores = write_softcap(a.graph, scores, a.softcap, at=a.node)
        scores.meta["parts"] = tiles
    shape = [a.batch, a.kv_heads, (last - first) * group, high - low]
    if a.tokens > 1:
        scores = call(aten.reshape.default, scores, [a.batch, a.kv_heads, last - first, group, high - low])
    hidden = _hidden_in_tile(a, tile, (low, high))
    scores = call(aten.masked_fill.Scalar, scores, hidden, float("-inf"))
    scores.meta["parts"] = tiles
    if a.tokens > 1:
        scores = call(aten.reshape.default, scores, shape)
    weights = call(aten.to.dtype, call(aten.softmax.int, scores, -1), a.graph.dtype)
    return call(torch.ops.ascend.batch_matmul.default, weights, values)


def _keys_of_tile(attention: Attention, first: int, last: int) -> tuple[int, int]:
    """The part of the keys that query tokens [first, last) of any row may see, as far as that is known beforehand."""
    a = attention
    if a.block_table is None:  # the step's own keys
        return (0 if a.window is None else max(0, first - (a.window - 1))), last
    if is_cut(a) and a.window is not None:
        return first, last + a.window - 1
    return 0, key_count(a)


def _hidden_in_tile(attention: Attention, tile: tuple[int, int], keys: tuple[int, int]) -> fx.Node:
    """The mask of a tile's scores, with dimensions of 1 for heads; shared by all layers."""
    a, (first, last), (low, high) = attention, tile, keys
    hidden = hidden_keys(a, tile, keys)
    rows = [] if a.graph.bucket.phase == "decode" else [last - first]
    return a.shared(
        f"{hidden.name}, by head",
        lambda at: a.call(aten.reshape.default, hidden, [-1, 1, *rows, 1, high - low], at=at),
    )
