"""Our own engine, on one rank, with the same settings but for the quantization: what that gains."""

from __future__ import annotations

from dataclasses import replace

from graph_gemma.runners.benchmarking.engine_runner import EngineRunner, warm_up
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.llm import LLM


def start(job: PeerJob) -> EngineRunner:
    floats = replace(job.model, checkpoint_dir=job.directory, random_weights=False, quantization=None)
    llm = LLM(replace(floats, world_size=1, dump_dir=None))
    warm_up(llm, job.cases)
    return EngineRunner(llm)
