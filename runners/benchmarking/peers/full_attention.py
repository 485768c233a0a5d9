"""Our own engine with every layer's attention full, so without windows: what these gain. Its answers are others."""

from __future__ import annotations

from dataclasses import replace

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, layer_types
from graph_gemma.runners.benchmarking.engine_runner import EngineRunner
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers import floating_point


def start(job: PeerJob) -> EngineRunner:
    config = job.config
    assert isinstance(config, Gemma2Config | Gemma3Config)  # the registry leaves out others
    full = replace(config, layer_types=layer_types(config.num_hidden_layers, 1))
    return floating_point.start(replace(job, model=replace(job.model, config=full)))
