"""Recognize arithmetic: a pass writes down the function that computes it, and the op that takes its place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from graph_model.bucket import Bucket
from graph_model.config import GemmaConfig
from graph_model.graph import KVCacheConfig, ModelGraph
from passes.canonicalize import Canonicalize
from passes.framework.contract import Pass, Tier
from passes.framework.match import match


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
        tensor = (1, 1, 1, 2), graph.dtype
        values = [tensor if kind is Tensor else kind(1000 + at) for at, kind in enumerate(kinds)]
        # First with examples, which finds the arguments; then with these, as sizes and casts may depend on them.
        for open_numbers in (set(values) - {tensor}, None):
            pattern = _trace(self.original, graph.config, graph.dtype, tuple(values))
            found = match(pattern, candidate, open_numbers)
            inputs = (found.nodes[node] for node in pattern.placeholders("input"))
            arguments = [next(inputs) if isinstance(each, tuple) else found.numbers.get(each, each) for each in values]
            values = [_described(each) if isinstance(each, fx.Node) else each for each in arguments]
        nodes = [found.nodes[node] for node in pattern.calls()]
        nodes[-1].replace_all_uses_with(self.replacement(graph, nodes[-1], *arguments))
        for node in reversed(nodes):
            if not node.users:
                graph.graph.erase_node(node)


def _described(node: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the tensor that is traced for a node's: of the sizes the last one counts, the others are 1."""
    value = node.meta["val"]
    return (*(1 for _ in value.shape[:-1]), *value.shape[-1:]), value.dtype


@lru_cache(maxsize=256)
def _trace(
    function: Callable[..., Tensor], config: GemmaConfig, dtype: torch.dtype, arguments: tuple[Any, ...]
) -> ModelGraph:
    """The canonical graph of `function` for numbers, and tensors of a shape and dtype, as if it were a step's."""

    def with_numbers(*tensors: Tensor) -> tuple[Tensor]:
        waiting = iter(tensors)
        return (function(*(next(waiting) if isinstance(each, tuple) else each for each in arguments)),)

    with FakeTensorMode():
        tensors = [torch.empty(each[0], dtype=each[1]) for each in arguments if isinstance(each, tuple)]
        module = make_fx(with_numbers, pre_dispatch=True)(*tensors)
    one_token = Bucket("decode", batch=1, chunk=1, max_blocks_per_seq=1)
    graph = ModelGraph(module, config, one_token, KVCacheConfig(1, 1), dtype)
    for node in graph.graph.nodes:
        node.meta["kind"] = "input"
    Canonicalize().apply(graph)
    return graph
