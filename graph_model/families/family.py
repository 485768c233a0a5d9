"""Family: a model's layers, tensor names, counts and attributes, for passes, quantizer, checks and inspection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families.layer import Attention, Layer, Linear, LinearGroup, Norm

if TYPE_CHECKING:  # settings know families, and need not wait for torch
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Attribute:
    """A number of the model that every rewrite must keep."""

    values: tuple[float, ...]  # those that it has in the model, each once
    carriers: int  # nodes of a graph that carry one of them


@dataclass(frozen=True)
class Counts:
    """How often things occur in the captured graph of a model."""

    norms: int  # the final one included
    norms_after_sums: int  # norms that read a residual sum: of the stream, all but the first one
    attentions: int
    rotations: int  # applications of rotary embedding
    rotary_bases: int  # tables of frequencies
    gated_activations: int
    linears: int  # the head included


@dataclass(frozen=True)
class OneMore:
    """A model with one layer more than `FewLayers.base`: what the two differ in is that layer's."""

    config: GemmaConfig
    rest: int  # layers like it in the whole model, less those in `base`; may be negative


@dataclass(frozen=True)
class FewLayers:
    """Small models from which the cost of the whole one follows, as layers that are alike cost alike.

    cost(whole) = cost(base) + the sum over `more` of rest * (cost(its config) - cost(base)).
    """

    base: GemmaConfig  # a layer of every kind, and the last layer, of which only the last token is computed
    more: tuple[OneMore, ...]  # one for each kind of layer


class Family(ABC):
    """A model of a family: its layers, the names of its tensors, and how often things occur in its graphs.

    A family defines the methods that are abstract here; the rest follows from its layers.
    """

    def __init__(self, config: GemmaConfig) -> None:
        self.config = config

    @abstractmethod
    def describe_layers(self) -> tuple[Layer, ...]:
        """The decoder layers in their order; those that are alike are equal."""

    @abstractmethod
    def embedding_scale(self, dtype: torch.dtype) -> float:
        """The factor on the embeddings, as `dtype` holds it."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The plain definition: (input_ids, positions), both int [batch, tokens], to logits [batch, tokens, vocab]."""

    @abstractmethod
    def decoder_layer(self, index: int) -> nn.Module:
        """The definition's decoder layer: (hidden, *layer_arguments) to hidden, [batch, tokens, hidden_size]."""

    @abstractmethod
    def layer_arguments(self, index: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What a decoder layer reads besides the hidden states, such as rotary tables."""

    # Names that all families have so far; a family whose checkpoints call them otherwise overrides them.

    embedding: ClassVar[str] = "model.embed_tokens.weight"
    layers_path: ClassVar[str] = "model.layers"
    norm_path: ClassVar[str] = "model.norm"
    head_path: ClassVar[str] = "lm_head"
    # Modules of checkpoints whose text part is the model, which the text part does not read.
    other_parts: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The decoder layers in their order; those that are alike are equal."""
        return self.describe_layers()

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The kinds of attention that the layers have, each once."""
        return tuple(dict.fromkeys(layer.attention for layer in self.layers))

    @cached_property
    def pools(self) -> tuple[int | None, ...]:
        """The windows of the layers, each once; those of one window share a pool of cache blocks. None: no window."""
        windows = {attention.window for attention in self.attentions}
        return tuple(sorted(windows, key=lambda window: (window is not None, window or 0)))

    @property
    def window(self) -> int | None:
        """Keys that a query sees in layers with a window, which all have the same; None: no layer has one."""
        windows = [window for window in self.pools if window is not None]
        assert len(windows) <= 1, "the engine has one pool of blocks for layers with a window"
        return windows[0] if windows else None

    @cached_property
    def attention_modules(self) -> frozenset[str]:
        """The module paths of attention, one per layer."""
        layers = enumerate(self.layers)
        return frozenset(f"{self.layer_path(index)}.{layer.attention.path}" for index, layer in layers)

    @property
    def final_norm(self) -> Norm:
        """The norm before the head, of the kind of the layers' norms."""
        return replace(self.layers[0].norms[0], path=self.norm_path, size=self.config.hidden_size, reads="stream")

    @cached_property
    def norms(self) -> dict[str, Norm]:
        """All norms by the paths of their modules, in the model's order; the final one is the last."""
        layers = enumerate(self.layers)
        inner = {f"{self.layer_path(index)}.{norm.path}": norm for index, layer in layers for norm in layer.norms}
        return {**inner, self.norm_path: self.final_norm}

    @property
    def norms_branches(self) -> bool:
        """Whether what is added to the residual stream comes out of norms."""
        return any(norm.reads == "branch" for norm in self.norms.values())

    @property
    def head(self) -> LinearGroup:
        """The head, whose weight is the embedding where the two are tied."""
        linear = Linear(self.head_path, self.config.vocab_size, self.config.hidden_size, "vocab")
        return LinearGroup("head", (linear,), norm=self.norm_path)

    def layer_path(self, index: int) -> str:
        """The module path of a decoder layer."""
        return f"{self.layers_path}.{index}"

    def layer_index(self, path: str) -> int | None:
        """The decoder layer that a module belongs to, by the module's path; None: it is in none."""
        number, _, _ = path.removeprefix(f"{self.layers_path}.").partition(".")
        inside = path.startswith(f"{self.layers_path}.") and number.isdecimal() and int(number) < len(self.layers)
        return int(number) if inside else None

    def cache_layer(self, index: int) -> int:
        """The layer whose KV cache a layer reads: its own, unless a family shares caches among layers."""
        return index

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all parameters, in the model's order; a tied head is left out."""
        found: dict[str, tuple[int, ...]] = {self.embedding: (self.config.vocab_size, self.config.hidden_size)}
        for index, layer in enumerate(self.layers):
            found.update({f"{self.layer_path(index)}.{name}": shape for name, shape in layer.tensors.items()})
        found[self.final_norm.weight] = (self.final_norm.size,)
        return found if self.config.tie_word_embeddings else found | self.head.linears[0].tensors

    @cached_property
    def groups(self) -> tuple[LinearGroup, ...]:
        """The linears of one input, by their whole paths, in the model's order; the head is the last."""
        layers = enumerate(self.layers)
        inner = (group.inside(self.layer_path(index)) for index, layer in layers for group in layer.groups)
        return (*inner, self.head)

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """All linears by their paths, in the model's order; the head is the last."""
        return {linear.path: linear for group in self.groups for linear in group.linears}

    def group_of(self, path: str) -> LinearGroup:
        """The linears that share the input of one, itself included."""
        return self._groups_by_path[path]

    def linears_at(self, path: str) -> tuple[str, ...]:
        """The paths of the linears that a call in module `path` computes: all of a group where it is merged."""
        group = self._groups_by_path.get(path)
        return group.paths if group is not None and path == group.merged else (path,)

    @cached_property
    def _groups_by_path(self) -> dict[str, LinearGroup]:
        return {path: group for group in self.groups for path in (*group.paths, group.merged) if path}

    # How often things occur in the model's graphs.

    @cached_property
    def counts(self) -> Counts:
        """How often things occur in the captured graph."""
        return Counts(
            norms=len(self.norms),
            norms_after_sums=sum(norm.reads == "stream" for norm in self.norms.values()) - 1,
            attentions=len(self.layers),
            rotations=sum(layer.attention.rotations for layer in self.layers),
            rotary_bases=len({layer.attention.rotary for layer in self.layers}),
            gated_activations=sum(group.role == "gate_up" for group in self.groups),
            linears=len(self.linears),
        )

    def attributes(self, dtype: torch.dtype) -> dict[str, Attribute]:
        """What must survive in a graph of `dtype`: its values and how many nodes carry them."""
        attentions = [layer.attention for layer in self.layers]
        norms = self.norms.values()
        offsets = sum(norm.one_plus for norm in norms)

        def distinct(values: Iterable[float]) -> tuple[float, ...]:
            return tuple(dict.fromkeys(values))

        return {
            "embedding_scale": Attribute((self.embedding_scale(dtype),), 1),
            "rope_theta": Attribute(distinct(a.rotary.base for a in attentions), self.counts.rotary_bases),
            "softmax_scale": Attribute(distinct(a.softmax_scale for a in attentions), len(attentions)),
            "norm_eps": Attribute(distinct(norm.eps for norm in norms), len(norms)),
            "norm_offset": Attribute((1.0,), offsets),
            **self._optional_attributes(),
        }

    def _optional_attributes(self) -> dict[str, Attribute]:
        """Those that only some models have."""
        attentions = [layer.attention for layer in self.layers]
        windows = [a.window for a in attentions if a.window is not None]
        softcaps = [a.softcap for a in attentions if a.softcap is not None]
        factors = {a.rotary: a.rotary.factor for a in attentions if a.rotary.factor != 1.0}
        final = self.config.logit_softcap
        found: dict[str, list[float]] = {
            "window": [*windows],
            "attention_softcap": softcaps,
            "rope_factor": [*factors.values()],
            "logit_softcap": [] if final is None else [final],
        }
        return {name: Attribute(tuple(dict.fromkeys(each)), len(each)) for name, each in found.items() if each}

    # Which layers stand for others.

    def few_layers(self) -> FewLayers:
        """Models of few layers, from which the cost of this model's graphs follows."""
        kinds = {layer: index for index, layer in reversed([*enumerate(self.layers)])}  # the first of each kind
        first = sorted(kinds.values())
        last = len(self.layers) - 1
        present = Counter(self.layers[index] for index in (*first, last))
        more = tuple(
            OneMore(self.config.of_layers([*sorted([*first, index]), last]), self.layers.count(layer) - present[layer])
            for layer, index in sorted(kinds.items(), key=lambda item: item[1])
        )
        return FewLayers(self.config.of_layers([*first, last]), more)
