"""The operands of one canonical attention, and shorthands for what replaces it on Ascend chips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import operand

aten = torch.ops.aten


class Attention:
    """The operands of one canonical attention, and shorthands for what replaces it.

    scales: of the keys' and of the values' cache, where they are int8.
    """

    def __init__(self, graph: ModelGraph, node: fx.Node) -> None:
        self.graph = graph
        self.node = node
        operands = [operand(node, index) for index in range(len(node.args) - 4)]
        self.query, self.key, self.value, self.key_cache, self.value_cache, *self.scales, self.slots = operands
        self.query_lens, self.context_lens, self.block_table, scale = node.args[-4:]
        assert isinstance(scale, float)
        self.scale = scale
        self.batch, self.tokens, self.heads, self.head_dim = self.query.meta["val"].shape
        self.kv_heads = self.key.meta["val"].shape[2]
        self.num_blocks, self.block_size = self.key_cache.meta["val"].shape[0], graph.cache_config.block_size
        window, softcap = node.kwargs.get("window"), node.kwargs.get("softcap")
        assert window is None or isinstance(window, int)
        assert softcap is None or isinstance(softcap, float)
        self.window, self.softcap = window, softcap

    @property
    def capacity(self) -> int:
        """How many tokens of a sequence the step's block table names; without one, how many are new."""
        table = self.block_table
        return table.meta["val"].shape[1] * self.block_size if isinstance(table, fx.Node) else self.tokens

    def call(self, target: Any, *args: Any, at: fx.Node | None = None, **kwargs: Any) -> fx.Node:
        """Insert a call before the attention, or before `at`."""
        return self.graph.insert(target, *args, at=at or self.node, **kwargs)

    def shared(self, name: str, make: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The value `name`, which all layers share: made in front of the graph's calls when it is first asked for.

        `make` inserts the calls that compute it before the node that it is given.
        """
        calls = self.graph.calls()
        found = [node for node in calls if node.meta.get("shared") == name]
        if found:
            return found[0]
        known = set(calls)
        made = make(next(node for node in calls if "shared" not in node.meta))
        for node in self.graph.calls():
            if node not in known:
                node.meta.update(layer="", shared=name if node is made else f"{name}, in part")
        return made
