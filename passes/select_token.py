"""Choose the token in the graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.passes.framework.contract import Matches, Pass, Tier
from graph_gemma.passes.framework.matches import ONCE

SAMPLING_INPUTS = (
    ("temperature", torch.float32),
    ("top_k", torch.int64),
    ("top_p", torch.float32),
    ("uniform", torch.float32),
)


@dataclass(frozen=True)
class SelectToken(Pass):
    """Logits become token ids.

    Original: return logits. After: return token_ids, and log-probabilities where the bucket asks for them.

    A greedy bucket takes the maximum (no sort); a sampling bucket gets the inputs temperature, top_k, top_p and
    uniform, one number per row each. A scoring bucket takes the maximum behind every scored position and returns the
    log-probabilities of its new input target_ids, or of all tokens (distribution).
    """

    name: ClassVar[str] = "select_token"
    tier: ClassVar[Tier] = Tier.EXACT
    matches: ClassVar[Matches] = ONCE
    after: ClassVar[tuple[str, ...]] = ("last_token",)
    required: ClassVar[bool] = True

    def candidates(self, graph: ModelGraph) -> list[fx.Node]:
        return list(graph.outputs)

    def rewrite(self, graph: ModelGraph, candidate: fx.Node) -> None:
        end = graph.graph.output_node()
        if graph.bucket.selection != "sample":
            chosen = graph.insert(ops.greedy_token, candidate, at=end)
        else:
            with graph.fake_mode:
                fakes = [torch.empty(graph.bucket.batch, dtype=dtype) for _, dtype in SAMPLING_INPUTS]
            settings = [
                graph.add_placeholder(name, "input", fake)
                for (name, _), fake in zip(SAMPLING_INPUTS, fakes, strict=True)
            ]
            chosen = graph.insert(ops.sample_token, candidate, *settings, at=end)
        outputs = [chosen]
        if graph.bucket.logprobs >= 0:
            logprobs = graph.insert(ops.token_logprobs, candidate, chosen, graph.bucket.logprobs, at=end)
            outputs += [graph.insert(operator.getitem, logprobs, index, at=end) for index in range(3)]
        elif graph.bucket.selection == "score":
            with graph.fake_mode:
                fake = torch.empty((graph.bucket.batch, graph.bucket.scored), dtype=torch.int64)
            targets = graph.add_placeholder("target_ids", "input", fake)
            outputs.append(graph.insert(ops.target_logprobs, candidate, targets, at=end))
        elif graph.bucket.selection == "distribution":
            outputs.append(graph.insert(ops.log_probabilities, candidate, at=end))
        graph.set_outputs(*outputs)

    def project(self, output: Any, graph: ModelGraph, inputs: dict[str, torch.Tensor]) -> Any:
        if graph.bucket.selection != "sample":
            return ops.greedy_token(output)
        return ops.sample_token(output, *(inputs[name] for name, _ in SAMPLING_INPUTS))
