"""Our engine as a runner of benchmark cases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.graph_model.quantization.linears import HEAD, Quantization
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Case, Timing, random_prompts
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine.engine import Engine
from graph_gemma.runners.engine.null_model import NullModel
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.model_settings import ModelSettings


def start(settings: ModelSettings, cases: Sequence[Case]) -> EngineRunner:
    """Load the model and compile what the cases need. Under torchrun this process becomes rank 0. Raises UserError."""
    from graph_gemma.runners.distributed.group import find_place, join

    with ExitStack() as resources:
        place = find_place()
        if place is not None:
            resources.enter_context(join(settings, place))
        llm = resources.enter_context(LLM(settings))
        warm_up(llm, cases)
        return EngineRunner(llm, resources.pop_all())


def warm_up(llm: LLM, cases: Sequence[Case]) -> None:
    """Load the weights and compile the steps that the cases need, those only.

    A case is the same steps each time, so an engine without a model rehearses them; each case twice, because the second
    finds blocks that the first has left in the cache.
    """
    rehearsed = NullModel.like(llm.loaded.model)
    engine = Engine(rehearsed)
    for case in cases:
        for seed in range(2):
            for prompt in random_prompts(case, llm.settings.config.vocab_size, seed):
                engine.add_request(prompt, exactly(case.answer))
            while engine.has_unfinished():
                engine.step()
    llm.loaded.model.warm_up(rehearsed.used)


def exactly(answer: int) -> SamplingParams:
    """Greedy answers of `answer` tokens, whatever they are."""
    return SamplingParams(max_new_tokens=answer, ignore_eos=True)


class EngineRunner:
    """Times the engine's steps; all requests arrive at once. The model must be warm."""

    name = "ours"

    def __init__(self, llm: LLM, resources: ExitStack | None = None) -> None:
        model = llm.loaded.model
        self.llm = llm
        self.facts = Facts(
            precision=precision(llm.settings.dtype, llm.settings.quantization),
            weight_bytes=model.weight_bytes,
            step_bytes=step_weight_bytes(model),
            token_bytes=step_token_bytes(model),
            details=f"{llm.loaded.backend}; torch {torch.__version__}",
        )
        self._resources = resources

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        engine, statistics = self.llm.engine, self.llm.engine.statistics
        sampling = exactly(answer)
        preemptions, prefill_s = statistics.preemptions, statistics.prefill_s
        start = last = time.perf_counter()
        answers: dict[int, list[int]] = {engine.add_request(prompt, sampling): [] for prompt in prompts}
        first_s: dict[int, float] = {}
        step_s: list[float] = []
        partial_steps = 0
        while engine.has_unfinished():
            decode_steps = statistics.decode_steps
            events = engine.step()
            now = time.perf_counter()
            for event in events:
                if event.token_id is not None:
                    first_s.setdefault(event.request_id, now - start)
                    answers[event.request_id].append(event.token_id)
            if statistics.decode_steps > decode_steps:
                if len(events) == len(prompts):
                    step_s.append(now - last)
                else:
                    partial_steps += 1
            last = now
        return Timing(
            total_s=last - start,
            first_s=list(first_s.values()),
            prefill_s=statistics.prefill_s - prefill_s,
            step_s=step_s,
            partial_steps=partial_steps,
            preemptions=statistics.preemptions - preemptions,
            answers=list(answers.values()),
        )

    def peak_bytes(self) -> int:
        return peak_memory(self.llm.loaded.model.recipe.backend.device)

    def close(self) -> None:
        if self._resources is not None:
            self._resources.close()


def precision(dtype: str, quantization: Quantization | None) -> str:
    """What the model computes with: bfloat16; bfloat16 w8a16 kv8."""
    scheme = None if quantization is None else quantization.scheme
    parts = [dtype, scheme, "kv8" if quantization is not None and quantization.kv8 else None]
    return " ".join(part for part in parts if part)


def step_token_bytes(model: CompiledModel) -> dict[int | None, int]:
    """Bytes that a decode step reads per token of a context, by the layers' windows, on all ranks."""
    recipe = model.recipe
    rank = pool_token_bytes(recipe.config, recipe.dtype, recipe.quantization, recipe.shard)
    return {window: recipe.shard.world_size * size for window, size in rank.items()}


def step_weight_bytes(model: CompiledModel) -> int:
    """Bytes of the weights that a decode step reads, each once, on all ranks."""
    recipe = model.recipe
    config, quantization, world_size = recipe.config, recipe.quantization, recipe.shard.world_size
    weights = model.weight_bytes * world_size
    if not config.tie_word_embeddings or (quantization is not None and HEAD in quantization.linears):
        # Of an embedding that is not the head, a step reads one row per request.
        weights -= config.vocab_size * config.hidden_size * recipe.dtype.itemsize
    return weights
