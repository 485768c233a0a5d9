"""llama.cpp, through llama-cpp-python's low-level interface: token ids in, the most likely token out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.gguf_file import stored_bytes, write_gguf
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Timing

_PROMPT_TOKENS = 512  # computed at once, llama.cpp's own default


def convert(job: PeerJob) -> None:
    write_gguf(job.directory, job.config, job.converted, job.dtype, job.int8)


def start(job: PeerJob) -> LlamaCppRunner:
    return LlamaCppRunner(job)


class LlamaCppRunner:
    """One sequence of llama.cpp per request; all of a batch's sequences in one decode call."""

    def __init__(self, job: PeerJob) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(job.converted).encode(), settings)
        if not self._model:
            raise RuntimeError("llama.cpp does not load the GGUF file that was written for it")
        context = llama_cpp.llama_context_default_params()
        context.n_seq_max = job.max_batch_size
        context.n_ctx = job.max_batch_size * job.max_seq_len
        context.kv_unified = False
        cache = "float32" if job.dtype == "float32" else "float16"  # the latter is its default
        context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32 if cache == "float32" else llama_cpp.GGML_TYPE_F16
        if cache == "float32":  # flash attention, else chosen on a CPU, makes the cache float16 and sums in it
            context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context.swa_full = False  # as its server and its command have it; llama.h's own default is true
        context.n_batch = max(_PROMPT_TOKENS, job.max_batch_size)
        context.n_ubatch = context.n_batch
        context.n_threads = context.n_threads_batch = job.threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError("llama.cpp does not make a context of this size")
        self._batch = llama_cpp.llama_batch_init(context.n_batch, 0, 1)
        self._chunk = context.n_batch
        self._vocab_size = job.config.vocab_size
        c, size = job.config, int(llama_cpp.llama_model_size(self._model))
        table = stored_bytes((c.vocab_size, c.hidden_size), job.dtype, job.int8)
        self.facts = Facts(
            precision="Q8_0" if job.int8 else job.dtype,
            weight_bytes=size,
            step_bytes=size if c.tie_word_embeddings else size - table,
            token_bytes=pool_token_bytes(c, getattr(torch, cache)),
            details=f"llama-cpp-python {llama_cpp.__version__}, cache {cache}, swa_full {bool(context.swa_full)}",
        )

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        start = time.perf_counter()
        answers = []
        for sequence, prompt in enumerate(prompts):
            for first in range(0, len(prompt), self._chunk):
                chunk = prompt[first : first + self._chunk]
                last = first + len(chunk) == len(prompt)
                rows = [(token, first + i, sequence) for i, token in enumerate(chunk)]
                self._decode(rows, logits=[len(rows) - 1] if last else [])
            answers.append([self._most_likely(len(rows) - 1)])
        # All prompts are computed before the first answer goes on, one after the other.
        times = [time.perf_counter()]
        for step in range(1, answer):
            rows = [(tokens[-1], len(prompts[i]) + step - 1, i) for i, tokens in enumerate(answers)]
            self._decode(rows, logits=range(len(rows)))
            for index, tokens in enumerate(answers):
                tokens.append(self._most_likely(index))
            times.append(time.perf_counter())
        return Timing(
            total_s=times[-1] - start,
            first_s=[times[0] - start] * len(prompts),
            prefill_s=times[0] - start,
            step_s=list(np.diff(times)),
            answers=answers,
        )

    def peak_bytes(self) -> int:
        return peak_memory(torch.device("cpu"))

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def _decode(self, rows: list[tuple[int, int, int]], logits: Any) -> None:
        """Compute tokens, each with its position and sequence; logits: which of them are needed for a next token."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = index in logits
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returns {status}")

    def _most_likely(self, index: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
