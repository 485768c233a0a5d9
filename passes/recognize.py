"""Recognize arithmetic: a pass writes down the function that computes it, and the op that takes its place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, get_type_hints

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.passes.canonicalize import Canonicalize
from graph_gemma.passes.framework.contract import Pass, Tier
from graph_gemma.passes.framework.match import Match, match


@dataclass(frozen=True)
class Recognize(Pass):
    """Base of passes that find what `original` computes, and put `op` in its place.

    `original` is traced and canonicalized as the model's definition is. Its tensors stand for the results of any nodes,
    its numbers for any numbers. A match hangs on the first of the ops that the pass `removes`.
    """

    tier: ClassVar[Tier] = Tier.EXACT
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    op: ClassVar[Callable[..., Any]]  # of the same arguments

    @staticmethod
    @abstractmethod
    def original(*args: Any, **kwargs: Any) -> Tensor:
        """The arithmetic, as a function of tensors and numbers."""

    def replacement(self, graph: ModelGraph, at: fx.Node, *arguments: Any) -> fx.Node:
        """What takes the place of `at`, the result of `original`. Raises NearMiss where nothing can."""
        return graph.insert(self.op, *arguments, at=at)

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return graph.calls(self.removes[0])

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        kinds = [kind for name, kind in get_type_hints(self.original).items() if name != "return"]
        example = Like((1, 1, 1, 2), graph.dtype)
        values = [example if kind is Tensor else kind(1000 + at) for at, kind in enumerate(kinds)]
        # First with examples, which finds the arguments; then with these, as sizes and casts may depend on them.
        for open_numbers in ({each for each in values if not isinstance(each, Like)}, None):
            pattern = trace_pattern(self.original, graph.config, graph.dtype, tuple(values))
            found = match(pattern, candidate, open_numbers)
            inputs = (found.nodes[node] for node in pattern.placeholders("input"))
            arguments = [next(inputs) if isinstance(each, Like) else found.numbers.get(each, each) for each in values]
            values = [Like.of(each) if isinstance(each, fx.Node) else each for each in arguments]
        result = found.nodes[pattern.outputs[0]]
        replace_match(graph, pattern, found, self.replacement(graph, result, *arguments))


class Like(NamedTuple):
    """A tensor that a function is traced with."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, node: fx.Node) -> Like:
        """What matters of a node's value to arithmetic by element: of sizes the last one, the others are 1."""
        value = node.meta["val"]
        return cls((*(1 for _ in value.shape[:-1]), *value.shape[-1:]), value.dtype)


def replace_match(graph: ModelGraph, pattern: ModelGraph, found: Match, new: fx.Node) -> None:
    """Put `new` in the place of the pattern's result, and drop what only the result read."""
    nodes = [found.nodes[node] for node in pattern.calls()]
    found.nodes[pattern.outputs[0]].replace_all_uses_with(new)
    for node in reversed(nodes):
        if not node.users:
            graph.graph.erase_node(node)


@lru_cache(maxsize=256)
def trace_pattern(
    function: Callable[..., Tensor], config: GemmaConfig, dtype: torch.dtype, arguments: tuple[Any, ...]
) -> ModelGraph:
    """The canonical graph of `function` for numbers, and tensors of a shape and dtype, as if it were a step's."""

    def with_numbers(*tensors: Tensor) -> tuple[Tensor]:
        waiting = iter(tensors)
        return (function(*(next(waiting) if isinstance(each, Like) else each for each in arguments)),)

    with FakeTensorMode():
        tensors = [torch.empty(each.shape, dtype=each.dtype) for each in arguments if isinstance(each, Like)]
        module = make_fx(with_numbers, pre_dispatch=True)(*tensors)
    one_token = Bucket("decode", batch=1, chunk=1, max_blocks_per_seq=1)
    graph = ModelGraph(module, config, one_token, KVCacheConfig(1, 1), dtype)
    for node in graph.graph.nodes:
        node.meta["kind"] = "input"
    Canonicalize().apply(graph)
    return graph
