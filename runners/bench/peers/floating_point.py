"""Our own engine on the floating-point weights: what quantising them gains."""

from __future__ import annotations

from runners.bench import engine_runner
from runners.bench.engine_runner import EngineRunner, with_room_for
from runners.bench.peers import PeerJob
from runners.entry import compose
from runners.settings import resolve_settings


def start(job: PeerJob) -> EngineRunner:
    overrides = [f"model.path={job.directory}", f"dtype={job.dtype}", f"max_batch_size={job.max_batch_size}"]
    settings = resolve_settings(compose("infer", overrides))
    return engine_runner.start(with_room_for(settings, job.max_seq_len), job.cases)
