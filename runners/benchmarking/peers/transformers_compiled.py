"""transformers: generate with a static cache and torch.compile."""

from __future__ import annotations

from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.transformers_eager import TransformersRunner


def start(job: PeerJob) -> TransformersRunner:
    transformers = import_transformers()
    # On CUDA transformers' own choice, which has CUDA graphs.
    compile_config = transformers.CompileConfig(**({"mode": "default"} if job.device == "cpu" else {}))
    if job.device == "cpu":
        # transformers compiles on a CPU only when told so.
        compile_config._compile_all_devices = True
    return TransformersRunner(job, {"cache_implementation": "static", "compile_config": compile_config})
