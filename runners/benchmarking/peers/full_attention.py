"""Our own engine with every layer's attention full, so without windows: what these gain. Its answers are others."""

from __future__ import annotations

from dataclasses import replace

from graph_model.config import Gemma2Config, Gemma3Config, layer_types
from runners.benchmarking.engine_runner import EngineRunner, warm_up
from runners.benchmarking.peer_registry import PeerJob
from runners.llm import LLM


def start(job: PeerJob) -> EngineRunner:
    config = job.config
    assert isinstance(config, Gemma2Config | Gemma3Config)  # the registry leaves out others
    full = replace(config, layer_types=layer_types(config.num_hidden_layers, 1))
    settings = replace(job.model, config=full, checkpoint_dir=job.directory, random_weights=False, quantization=None)
    llm = LLM(replace(settings, world_size=1, dump_dir=None))
    warm_up(llm, job.cases)
    return EngineRunner(llm)
