"""Time each token of `generate`, of transformers' models and of others with its interface."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.benchmarking.timing import Timing


def timed_generate(
    model: Any, prompts: list[list[int]], answer: int, synchronize: Callable[[], None], **settings: Any
) -> Timing:
    """Greedy answers of `answer` tokens; the time of each token is when `synchronize` has returned after it."""
    transformers = import_transformers()
    times: list[float] = []

    def note(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        synchronize()
        times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    # What the model says of its ends would fill in what is not set here, and keep its tokens from being chosen.
    model.generation_config = transformers.GenerationConfig()
    config = transformers.GenerationConfig(max_new_tokens=answer, do_sample=False, pad_token_id=0, **settings)
    ids = torch.tensor(prompts, device=model.device)
    synchronize()
    start = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        stopping_criteria=transformers.StoppingCriteriaList([note]),
    )
    first, *rest = times
    return Timing(
        total_s=times[-1] - start,
        first_s=[first - start] * len(prompts),
        prefill_s=first - start,
        step_s=[after - before for before, after in zip(times, rest, strict=False)],
        answers=output[:, ids.shape[1] :].tolist(),
    )
