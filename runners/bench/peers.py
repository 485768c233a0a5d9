"""What a user would run instead, on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from graph_model.errors import UserError
from runners.bench.timing import Runner, Timing
from runners.load import LoadedModel
from runners.transformers_import import import_transformers


def make_peers(names: list[str], loaded: LoadedModel) -> list[Runner]:
    """The peers of the setting `peers`, sharing one copy of the weights. Raises UserError at an unknown name."""
    known: dict[str, Callable[[Any], Runner]] = {
        "transformers": lambda model: TransformersRunner("transformers", model, compiled=False),
        "transformers_compiled": lambda model: TransformersRunner("transformers_compiled", model, compiled=True),
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"peers: {unknown[0]!r} is unknown; there are {', '.join(known)}.")
    if not names:
        return []
    if loaded.model.recipe.config.quantize is not None:
        raise UserError("peers: transformers cannot read a quantised checkpoint of this kind. Leave peers empty.")
    model = _transformers_model(loaded)
    return [known[name](model) for name in names]


class TransformersRunner:
    """generate of transformers; compiled: with a static cache and torch.compile."""

    def __init__(self, name: str, model: Any, compiled: bool) -> None:
        self.name = name
        self._model = model
        self._compiled = compiled

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        from transformers import CompileConfig, GenerationConfig, StoppingCriteriaList

        times: list[float] = []

        def note(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        settings: dict[str, Any] = {"disable_compile": True}
        if self._compiled:
            compile_config = CompileConfig(mode="default")
            # transformers compiles on a CPU only when told so.
            compile_config._compile_all_devices = True  # type: ignore[assignment]
            settings = {"cache_implementation": "static", "compile_config": compile_config}
        config = GenerationConfig(
            max_new_tokens=answer, min_new_tokens=answer, do_sample=False, pad_token_id=0, eos_token_id=None, **settings
        )
        ids = torch.tensor(prompts, device=self._model.device)
        start = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([note]),
        )
        first, *rest = times
        return Timing(first - start, [b - a for a, b in zip(times, rest, strict=False)])


def _transformers_model(loaded: LoadedModel) -> Any:
    transformers = import_transformers()
    recipe = loaded.model.recipe
    config = transformers.GemmaConfig(**recipe.config.to_json())
    with torch.device("meta"):
        names = [name for name, _ in transformers.GemmaForCausalLM(config).named_parameters()]
    state = {name: loaded.read(name).to(recipe.dtype) for name in names}
    model = transformers.GemmaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=recipe.dtype)
    model.to(recipe.backend.device)  # type: ignore[arg-type]
    return model.eval()
