"""OpenVINO: a stateful model on its CPU plugin, driven as OpenVINO GenAI drives one."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import torch

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.openvino_model import build_model, save_model
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Timing

_HINTS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def convert(job: PeerJob) -> None:
    job.converted.mkdir()
    with ExitStack() as resources:
        checkpoint = resources.enter_context(open_checkpoint(job.directory, job.config))
        model = build_model(job.config, lambda name, part=None: checkpoint.read(name), job.dtype, job.int8)
        save_model(model, job.converted / "model.xml")


def start(job: PeerJob) -> OpenVinoRunner:
    return OpenVinoRunner(job)


class OpenVinoRunner:
    """All requests are rows of one call. What the plugin chooses by itself is left to it, as its cache's precision."""

    def __init__(self, job: PeerJob) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": job.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[job.dtype],
            # By default it is int8, which would hide whether float32 tokens agree.
            **({"KV_CACHE_PRECISION": "f32"} if job.dtype == "float32" and not job.int8 else {}),
        }
        compiled = core.compile_model(job.converted / "model.xml", "CPU", settings)
        self._request = compiled.create_infer_request()
        precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        cache = compiled.get_property("KV_CACHE_PRECISION")
        c = job.config
        held = (job.converted / "model.bin").stat().st_size
        element = 1 if job.int8 else getattr(torch, job.dtype).itemsize
        embedding = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size * element
        self.facts = Facts(
            precision=f"int8 weights, {precision}" if job.int8 else precision,
            weight_bytes=held,
            step_bytes=held - embedding,
            token_bytes={window: cache.size * numbers for window, numbers in pool_token_bytes(c, torch.int8).items()},
            details=f"openvino {openvino.__version__}, cache {cache.to_string()}",
        )

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        self._request.reset_state()
        beams = np.arange(len(prompts), dtype=np.int32)
        ids = np.array(prompts, np.int64)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None].repeat(len(prompts), 0)
        chosen, times = [], [time.perf_counter()]
        for step in range(answer):
            inputs = {"input_ids": ids, "position_ids": positions, "beam_idx": beams}
            logits = self._request.infer(inputs, share_inputs=True)["logits"]
            ids = logits.argmax(-1)[:, None]  # [batch, 1]
            positions = np.full_like(ids, len(prompts[0]) + step)
            chosen.append(ids)
            times.append(time.perf_counter())
        return Timing(
            total_s=times[-1] - times[0],
            first_s=[times[1] - times[0]] * len(prompts),
            prefill_s=times[1] - times[0],
            step_s=list(np.diff(times[1:])),
            answers=np.concatenate(chosen, 1).tolist(),
        )

    def peak_bytes(self) -> int:
        return peak_memory(torch.device("cpu"))
