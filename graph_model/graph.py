"""ModelGraph: the FX graph of one step, with its weights, caches and inputs as placeholders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx

from graph_gemma.graph_model.bucket import Bucket, pool_input
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import Attention, Family, family_of
from graph_gemma.graph_model.quantization.linears import Quantization
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard
from graph_gemma.graph_model.weights import Expression, WeightPlan

Kind = Literal["weight", "cache", "input"]


@dataclass(frozen=True)
class KVCacheConfig:
    """The shape of the KV cache."""

    num_blocks: int  # of layers that see all tokens, scratch blocks included
    block_size: int  # tokens
    num_window_blocks: int | None = None  # of layers with a window, scratch blocks included; None: as many

    def shape(self, attention: Attention, kv_heads: int) -> tuple[int, int, int, int]:
        """The shape of a layer's keys in floating point, and of its values. kv_heads: the rank's."""
        return self.blocks(attention.window), self.block_size, kv_heads, attention.head_dim

    def blocks(self, window: int | None) -> int:
        """Blocks of the pool of layers with such a window, or of those that see all tokens (None)."""
        if window is None or self.num_window_blocks is None:
            return self.num_blocks
        return self.num_window_blocks


@dataclass
class ModelGraph:
    """A captured graph on its way through the passes.

    Placeholders carry ``meta["kind"]``; weights come first, then caches, then the step's inputs. Every node carries a
    fake tensor in ``meta["val"]`` and, in ``meta["layer"]``, the module of the plain definition that it came from.
    Weights carry their expression in ``meta["expression"]``.
    """

    module: fx.GraphModule
    config: GemmaConfig
    bucket: Bucket
    cache_config: KVCacheConfig
    dtype: torch.dtype
    quantization: Quantization | None = None
    shard: Shard = WHOLE  # the rank whose part of the model the graph computes; the whole before it is sharded
    residual_exponent: int = 0  # the residual stream is 2 ** residual_exponent times smaller than the model's
    matches: dict[str, int] = field(default_factory=dict)  # how often each pass so far matched, by its name
    skipped: dict[str, str] = field(default_factory=dict)  # passes so far that found nothing, and why

    @property
    def family(self) -> Family:
        """What the model is, layer by layer."""
        return family_of(self.config)

    @property
    def scheme(self) -> Scheme | None:
        """How linears are quantized; None: none is."""
        return scheme_of(self.quantization)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def placeholders(self, kind: Kind) -> list[fx.Node]:
        """The placeholders of a kind, in order."""
        return [n for n in self.graph.nodes if n.op == "placeholder" and n.meta["kind"] == kind]

    def slots_of(self, cache: fx.Node) -> str:
        """The name of the input that says where a step writes a cache."""
        layer = self.family.layers[int(cache.name.rpartition("_")[2])]
        return pool_input("slot_mapping", layer.attention.window)

    def calls(self, *targets: object) -> list[fx.Node]:
        """The nodes that call one of `targets`, in order; without targets, all calls."""
        return [n for n in self.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]

    @property
    def weight_plan(self) -> WeightPlan:
        """Expression of each weight placeholder, by name, in order."""
        return {node.name: node.meta["expression"] for node in self.placeholders("weight")}

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values the graph returns."""
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]

    def set_outputs(self, *nodes: fx.Node) -> None:
        """Return the values of `nodes` instead."""
        self.graph.output_node().args = (nodes,)

    def add_placeholder(self, name: str, kind: Kind, value: torch.Tensor) -> fx.Node:
        """Append a placeholder after the others of its kind (inputs last); `value` is its fake tensor."""
        order = ("weight", "cache", "input")
        present = [n for n in self.graph.nodes if n.op == "placeholder"]
        before = [n for n in present if order.index(n.meta["kind"]) <= order.index(kind)]
        with self.graph.inserting_after(before[-1]) if before else self.graph.inserting_before():
            node = self.graph.placeholder(name)
        node.meta.update(kind=kind, val=value, layer="")
        return node

    def add_weight(self, name: str, expression: Expression) -> fx.Node:
        """The weight placeholder computed by `expression`, appended if there is none yet."""
        for node in self.placeholders("weight"):
            if node.meta["expression"] == expression:
                return node
        with self.fake_mode:
            value = torch.empty(expression.shape, dtype=expression.dtype)
        node = self.add_placeholder(name, "weight", value)
        node.meta["expression"] = expression
        return node

    def insert(self, target: Any, *args: Any, at: fx.Node, **kwargs: Any) -> fx.Node:
        """Insert a call before `at`, with its fake value; it inherits the layer of `at`."""
        with self.graph.inserting_before(at):
            node = self.graph.create_node("call_function", target, args, kwargs, name=_short_name(target))
        fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.fake_mode:
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        node.meta["layer"] = at.meta.get("layer", "")
        return node

    @property
    def fake_mode(self) -> torch._subclasses.FakeTensorMode:
        """The mode that every fake value of the graph belongs to."""
        return next(n.meta["val"].fake_mode for n in self.graph.nodes if n.op == "placeholder")

    def propagate(self) -> None:
        """Compute the fake value of every call anew, from those of the placeholders."""
        for node in self.calls():
            arguments, options = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with self.fake_mode:
                node.meta["val"] = node.target(*arguments, **options)  # type: ignore[operator]

    def clean(self) -> None:
        """Drop calls and weights without users, check the graph and regenerate its code."""
        self.graph.eliminate_dead_code()
        for node in self.placeholders("weight"):
            if not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        self.module.recompile()

    def copy(self) -> ModelGraph:
        """An independent copy that shares the fake values."""
        environment: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        output = graph.graph_copy(self.graph, environment)
        graph.output(output)
        for old, new in environment.items():
            new.meta = dict(old.meta)
        module = fx.GraphModule({}, graph)
        return replace(self, module=module, matches=dict(self.matches), skipped=dict(self.skipped))


def _short_name(target: Any) -> str:
    """The name of a new node: that of the op, without namespace and overload."""
    return target._opname if isinstance(target, torch._ops.OpOverload) else target.__name__
