"""Estimates by the cost model, in place of speeds, where the Ascend graph runs on the stand-in."""

from __future__ import annotations

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.lower import lower
from graph_gemma.runners.backends.ascend.roofline import estimate
from graph_gemma.runners.benchmarking.request import Request
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.model_settings import ModelSettings


def on_standin(settings: ModelSettings) -> bool:
    """Whether the model's graphs run on the stand-in, whose speed says nothing of a chip's."""
    if settings.soc is None:
        return False
    standin.load(settings.soc, settings.cache_dir)
    return standin.is_standin()


def print_estimates(request: Request) -> None:
    """Load the model and print the estimates of its cases."""
    assert request.model.soc is not None
    with LLM(request.model) as llm:
        print("\n".join(estimates(request, request.model.soc, llm.loaded.model)))


def estimates(request: Request, soc: Chip, model: CompiledModel) -> list[str]:
    """A line per case and phase: a lower bound of the time on the chip, and what it is bound by."""
    lines = [
        f"backend: {model.recipe.description}",
        f"No speeds: the graph of the {soc.product} runs on the CANN stand-in, on this machine's CPU.",
        "Instead, the cost model's ESTIMATE, a lower bound by the chip's peak rates:",
    ]
    for case in request.cases:
        context = case.prompt + case.answer // 2
        blocks = -(-(case.prompt + case.answer) // model.block_size)
        chunk = min(case.prompt, request.model.max_prefill_tokens)
        prefill = model.buckets.choose("prefill", 1, chunk)
        decode = model.buckets.choose("decode", case.batch, blocks=blocks)
        name = f"batch {case.batch}, {case.prompt} + {case.answer}:"
        lines.append(f"{name} prefill of {chunk} tokens of one prompt {_estimate(model, soc, prefill, None)}")
        lines.append(f"{name} decode step {_estimate(model, soc, decode, context)}")
    return lines


def _estimate(model: CompiledModel, soc: Chip, bucket: Bucket, context_length: int | None) -> str:
    cost = estimate(lower(model.recipe.graph(bucket)).graph, soc, context_length)
    seconds: dict[str, float] = {}
    for node in cost.nodes:
        seconds[node.bound] = seconds.get(node.bound, 0.0) + node.seconds
    slowest = max(seconds, key=seconds.__getitem__)
    return f"at least {cost.total_s * 1e3:.3f} ms, {seconds[slowest] / cost.total_s:.0%} of it for {slowest}"
