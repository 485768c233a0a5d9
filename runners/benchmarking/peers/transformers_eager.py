"""transformers: generate, eager."""

from __future__ import annotations

from typing import Any

import torch

from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.generating import timed_generate
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Timing


def start(job: PeerJob) -> TransformersRunner:
    return TransformersRunner(job, {"disable_compile": True})


class TransformersRunner:
    """generate with the given settings, on floating-point weights: transformers has no int8 ones of its own."""

    def __init__(self, job: PeerJob, settings: dict[str, Any]) -> None:
        transformers = import_transformers()
        dtype = getattr(torch, job.dtype)
        self._settings = settings
        self._device = torch.device(job.device)
        named = {"torch_dtype" if transformers.__version__.startswith("4.") else "dtype": dtype}
        model = transformers.AutoModelForCausalLM.from_pretrained(job.directory, **named)
        self.model = model.to(self._device).eval()
        parameters = {name: parameter.nbytes for name, parameter in self.model.named_parameters()}
        held = sum(parameters.values())
        c = job.config
        embedding = 0 if c.tie_word_embeddings else parameters["model.embed_tokens.weight"]
        self.facts = Facts(
            precision=job.dtype,
            weight_bytes=held,
            step_bytes=held - embedding,
            token_bytes=pool_token_bytes(c, dtype),
            details=f"transformers {transformers.__version__}, torch {torch.__version__}",
        )

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        return timed_generate(self.model, prompts, answer, self._synchronize, **self._settings)

    def peak_bytes(self) -> int:
        return peak_memory(self._device)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
