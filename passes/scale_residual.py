"""Scale the residual stream down, so that float16 can hold it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT, MOST_EXPONENT
from graph_gemma.graph_model.weights import OnePlus
from graph_gemma.passes.framework.attributes import embedding_scale
from graph_gemma.passes.framework.contract import Matches, Pass, Tier, expression, require
from graph_gemma.passes.framework.matches import Counted


@dataclass(frozen=True)
class ScaleResidual(Pass):
    """In float16, where branches are normed: the residual stream is 2 ** exponent times smaller.

    The stream of Gemma 2 and 3 exceeds 65,504, the largest float16. As everything that is added to it comes out of a
    norm, all of it can be scaled, and a power of two scales exactly. With s = 2 ** -exponent::

        embedding * scale        ->  embedding * (scale * s)
        norm of a branch, 1 + w  ->  (1 + w) * s
        norm of the stream, eps  ->  eps * s ** 2, so that the same comes out

    With an exponent of 5 the stream may reach 2.1 million; its numbers below 2 ** -9 lose some of their last bits.
    """

    name: ClassVar[str] = "scale_residual"
    tier: ClassVar[Tier] = Tier.TOLERANT
    matches: ClassVar[Matches] = Counted(
        lambda graph: 1 + sum(norm.reads != "heads" for norm in graph.family.norms.values())
    )
    needs: ClassVar[tuple[str, ...]] = ("rms_norm",)

    exponent: int = DEFAULT_EXPONENT

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= MOST_EXPONENT:
            raise UserError(
                f"passes.scale_residual.exponent is {self.exponent}; it must be an integer of at least 0 and at most "
                f"{MOST_EXPONENT}. graph-gemma activations recommends one for a checkpoint."
            )

    def idle(self, graph: ModelGraph) -> str:
        if graph.dtype is not torch.float16:
            return "the dtype holds the residual stream as it is"
        if not self.exponent:
            return "passes.scale_residual.exponent is 0"
        return "" if graph.family.norms_branches else "branches are added to the residual stream without a norm"

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        norms = graph.calls(ops.rms_norm)
        return [*norms, *(node for node in graph.calls() if embedding_scale(node) is not None)] if norms else []

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        scale = 2.0**-self.exponent
        factor = embedding_scale(candidate)
        if isinstance(factor, float):
            candidate.args = (candidate.args[0], factor * scale)
            graph.residual_exponent = self.exponent
            return
        norm = graph.family.norms.get(candidate.meta["layer"])
        require(norm is not None and norm.reads != "heads", candidate, "norms heads, or nothing of the model")
        assert norm is not None
        x, weight, eps = candidate.args
        if norm.reads == "stream":
            assert isinstance(eps, float)
            candidate.args = (x, weight, eps * scale * scale)
            return
        one_plus = expression(candidate, 1)
        require(isinstance(one_plus, OnePlus), candidate, f"its factor is {one_plus}, expected 1 + a weight")
        assert isinstance(one_plus, OnePlus)
        assert isinstance(weight, fx.Node)
        candidate.args = (x, graph.add_weight(f"{weight.name}_scaled", replace(one_plus, gain=scale)), eps)
