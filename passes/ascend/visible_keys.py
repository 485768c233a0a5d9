"""Which keys a query may see on Ascend chips: positions, masks, blocks and places, computed once for all layers.

A query sees the keys up to its own; in a layer with a window of W the last W of them. What depends on the window is
made once for each window that the model has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.ascend.operands import Attention

aten = torch.ops.aten

# Names of the ops that it makes and that no other pass knows.
VISIBLE_KEYS_OPS = (
    "aten.clamp",
    "aten.floor_divide",
    "aten.gather",
    "aten.gt.Tensor",
    "aten.logical_or",
    "aten.lt.Tensor",
    "aten.minimum",
    "aten.remainder.Scalar",
    "aten.sub.Tensor",
)


def is_cut(attention: Attention) -> bool:
    """Whether a step reads the keys from its first query's oldest one on only, as the window leaves out others."""
    a = attention
    return a.block_table is not None and a.window is not None and a.window - 1 + a.tokens < a.capacity


def key_count(attention: Attention) -> int:
    """How many keys of a row a step's queries see together, places before and after its sequence included."""
    a = attention
    return a.window - 1 + a.tokens if is_cut(a) and a.window is not None else a.capacity


def key_positions(attention: Attention, low: int = 0, high: int | None = None) -> fx.Node:
    """Positions of the keys [low, high) of those that a step reads, all unless it is said.

    int64 [keys] or, where the window cuts them, [batch, keys]: then negative before the sequence.
    """
    a, high = attention, key_count(attention) if high is None else high
    steps = _numbers(a, low, high)
    if not is_cut(a):
        return steps
    first = _oldest_of_first_query(a)
    name = f"positions {low} to {high} in window {a.window}"
    return a.shared(name, lambda at: a.call(aten.add.Tensor, first, steps, at=at))


def hidden_keys(
    attention: Attention, tokens: tuple[int, int] | None = None, keys: tuple[int, int] | None = None
) -> fx.Node:
    """bool, true where a query may not see a key: [batch, keys] in decode, else [batch or 1, tokens, keys].

    tokens, keys: the parts [first, last) that are asked for; all unless it is said. Every query sees a key, padded ones
    too: what the last token sees or, where a part may lack that, the keys of padded tokens.
    """
    a, phase = attention, attention.graph.bucket.phase
    first, stop = tokens or (0, a.tokens)
    positions, last = key_positions(a, *(keys or ())), last_token(a)
    steps = _numbers(a, first, stop) if phase != "decode" else last
    start = _start(a) if phase == "extend" else None

    def make(at: fx.Node) -> fx.Node:
        def call(target: Any, *args: Any) -> fx.Node:
            return a.call(target, *args, at=at)

        visible, by_row = last, positions
        if phase != "decode":
            queries = steps if start is None else call(aten.add.Tensor, start, steps)
            own_keys = is_cut(a) or (start is None and a.window is not None)
            visible = queries if own_keys else call(aten.minimum.default, queries, last)
            visible = call(aten.unsqueeze.default, visible, -1)
            if own_keys and start is None:  # the same for all rows
                visible = call(aten.unsqueeze.default, visible, 0)
            by_row = call(aten.unsqueeze.default, positions, 1) if is_cut(a) else positions
        hidden = call(aten.gt.Tensor, by_row, visible)
        if a.window is None:
            return hidden
        oldest = call(aten.clamp.default, call(aten.sub.Tensor, visible, a.window - 1), 0)
        return call(aten.logical_or.default, hidden, call(aten.lt.Tensor, by_row, oldest))

    return a.shared(f"hidden from tokens {first} to {stop} in window {a.window}", make)


def visible_blocks(attention: Attention) -> tuple[fx.Node, fx.Node]:
    """The blocks that hold a key which a query may see, int64 [batch, blocks], and how many of their tokens count."""
    a = attention
    table, lens = a.block_table, a.context_lens
    assert isinstance(table, fx.Node)
    assert isinstance(lens, fx.Node)
    if a.window is None:
        return table, lens
    # From the first query's oldest key to the last query's own, wherever the oldest stands in its block.
    count = (a.window - 1 + a.tokens + a.block_size - 2) // a.block_size + 1
    width = a.capacity // a.block_size
    if count >= width:
        return table, lens
    name, oldest = f"blocks of window {a.window}", _oldest_of_first_query(a)

    def make_first(at: fx.Node) -> fx.Node:
        return a.call(aten.floor_divide.default, a.call(aten.clamp.default, oldest, 0, at=at), a.block_size, at=at)

    def make_table(at: fx.Node) -> fx.Node:
        places = a.call(aten.add.Tensor, first, number_range(a.graph, 0, count, at), at=at)
        places = a.call(aten.clamp.default, places, None, width - 1, at=at)
        return a.call(aten.gather.default, table, 1, places, at=at)

    def make_lens(at: fx.Node) -> fx.Node:
        tokens = a.call(aten.mul.Tensor, a.call(aten.reshape.default, first, [-1], at=at), a.block_size, at=at)
        return a.call(aten.sub.Tensor, lens, tokens, at=at)

    first = a.shared(f"first of the {name}", make_first)
    return a.shared(name, make_table), a.shared(f"tokens in the {name}", make_lens)


def int32_table(attention: Attention) -> fx.Node:
    """The block table that a paged kernel reads: in decode of the visible blocks, in prefill of those of the slots."""
    a = attention
    if a.block_table is None:
        return as_int32(a, a.shared(f"table of {a.slots.name}", lambda at: _table_of_slots(a, at)))
    table = visible_blocks(a)[0] if a.graph.bucket.phase == "decode" else a.block_table
    assert isinstance(table, fx.Node)
    return as_int32(a, table)


def as_int32(attention: Attention, table: fx.Node) -> fx.Node:
    """A block table as kernels take it, shared by all layers."""
    a = attention
    return a.shared(f"{table.name}, int32", lambda at: a.call(aten.to.dtype, table, torch.int32, at=at))


def hidden_in_blocks(attention: Attention) -> fx.Node:
    """bool [batch, 1, 1, tokens of the visible blocks] for decode: true where the window hides a key."""
    a = attention
    table, lens = visible_blocks(a)
    assert a.window is not None
    window, width = a.window, table.meta["val"].shape[1] * a.block_size
    keys = _numbers(a, 0, width)

    def make(at: fx.Node) -> fx.Node:
        last = a.call(aten.unsqueeze.default, a.call(aten.sub.Tensor, lens, 1, at=at), 1, at=at)
        oldest = a.call(aten.sub.Tensor, last, window - 1, at=at)
        hidden = a.call(aten.lt.Tensor, keys, oldest, at=at)
        return a.call(aten.reshape.default, hidden, [a.batch, 1, 1, width], at=at)

    return a.shared(f"hidden in the blocks of window {window}", make)


def token_places(attention: Attention, by_head: bool, heads_first: bool = False) -> fx.Node:
    """int64, flat: where the cache holds each key that a step reads, the row's last token in place of those beyond it.

    Rows of the cache as a matrix of one token per row; by_head: of one token and head per row, heads before tokens in
    the result. heads_first: the cache's blocks hold one head after the other.
    """
    a = attention
    tokens, last = key_positions(a), last_token(a)

    def make(at: fx.Node) -> fx.Node:
        def call(target: Any, *args: Any) -> fx.Node:
            return a.call(target, *args, at=at)

        starts = call(aten.unsqueeze.default, call(aten.mul.Tensor, a.block_table, a.block_size), 2)
        slots = call(aten.add.Tensor, starts, number_range(a.graph, 0, a.block_size, at))
        slots = call(aten.reshape.default, slots, [a.batch, a.capacity])
        positions = call(aten.minimum.default, tokens, last)
        if is_cut(a):
            positions = call(aten.clamp.default, positions, 0)
        places = call(aten.gather.default, slots, 1, positions)
        if heads_first and a.kv_heads > 1:
            offsets = call(aten.remainder.Scalar, places, a.block_size)
            blocks = call(aten.mul.Tensor, call(aten.sub.Tensor, places, offsets), a.kv_heads)
            first = call(aten.unsqueeze.default, call(aten.add.Tensor, blocks, offsets), 1)
            heads = call(
                aten.unsqueeze.default, number_range(a.graph, 0, a.kv_heads * a.block_size, at, a.block_size), 1
            )
            places = call(aten.add.Tensor, first, heads)
        elif by_head:
            first = call(aten.unsqueeze.default, call(aten.mul.Tensor, places, a.kv_heads), 1)
            heads = call(aten.unsqueeze.default, number_range(a.graph, 0, a.kv_heads, at), 1)
            places = call(aten.add.Tensor, first, heads)
        return call(aten.reshape.default, places, [-1])

    assert isinstance(a.block_table, fx.Node)
    name = f"places in {a.block_table.name}" + " by head" * by_head
    return a.shared(f"{name} in window {a.window}" if is_cut(a) else name, make)


def last_token(attention: Attention) -> fx.Node:
    """int64 [batch, 1]: the position of each row's last token."""
    a = attention
    lens = a.query_lens if a.block_table is None else a.context_lens
    return a.shared(
        "last token",
        lambda at: a.call(aten.unsqueeze.default, a.call(aten.sub.Tensor, lens, 1, at=at), 1, at=at),
    )


def number_range(graph: ModelGraph, first: int, stop: int, at: fx.Node, step: int = 1) -> fx.Node:
    """int64: first, first + step, ... below `stop`."""
    cpu = torch.device("cpu")
    return graph.insert(aten.arange.start_step, first, stop, step, dtype=torch.int64, device=cpu, at=at)


def _numbers(attention: Attention, first: int, stop: int) -> fx.Node:
    """int64 [stop - first]: first, first + 1, ..."""
    return attention.shared(f"numbers {first} to {stop}", lambda at: number_range(attention.graph, first, stop, at))


def _start(attention: Attention) -> fx.Node:
    """int64 [batch, 1]: the position of each row's first new token in a later chunk."""
    a = attention

    def make(at: fx.Node) -> fx.Node:
        return a.call(aten.unsqueeze.default, a.call(aten.sub.Tensor, a.context_lens, a.query_lens, at=at), 1, at=at)

    return a.shared("start", make)


def _oldest_of_first_query(attention: Attention) -> fx.Node:
    """int64 [batch, 1]: the oldest position that the window shows to a row's first query; may be negative."""
    a = attention
    assert a.window is not None
    window = a.window
    first = last_token(a) if a.graph.bucket.phase == "decode" else _start(a)
    return a.shared(f"oldest in window {window}", lambda at: a.call(aten.sub.Tensor, first, window - 1, at=at))


def _table_of_slots(attention: Attention, at: fx.Node) -> fx.Node:
    """The blocks of a first chunk, which begins with a block and fills one after the other."""
    a = attention
    firsts = a.call(aten.slice.Tensor, a.slots, 1, 0, a.tokens, a.block_size, at=at)
    return a.call(aten.floor_divide.default, firsts, a.block_size, at=at)
