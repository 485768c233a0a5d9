"""CTranslate2: its generator on a model written as its own converter writes Gemma."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.graph_model.weights import Read
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.weights import word
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Timing


def convert(job: PeerJob) -> None:
    """Raises ValueError where CTranslate2 has no kernels for the precision."""
    compute_type = _compute_type(job)
    with ExitStack() as resources:
        checkpoint = resources.enter_context(open_checkpoint(job.directory, job.config))
        spec = _spec(job, lambda name, part=None: checkpoint.read(name))
        spec.validate()
        spec.optimize(quantization=compute_type)
        job.converted.mkdir()
        spec.save(str(job.converted))


def start(job: PeerJob) -> CTranslate2Runner:
    return CTranslate2Runner(job)


class CTranslate2Runner:
    """All requests are one batch of its generator."""

    def __init__(self, job: PeerJob) -> None:
        import ctranslate2

        compute_type = _compute_type(job)
        self._generator = ctranslate2.Generator(
            str(job.converted), device=job.device, compute_type=compute_type, intra_threads=job.threads, inter_threads=1
        )
        self._device = torch.device(job.device)
        c, held = job.config, (job.converted / "model.bin").stat().st_size
        element = {"float32": 4, "int8_float32": 1}.get(compute_type, 2)
        embedding = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size * element
        cache = torch.float32 if compute_type.endswith("float32") else torch.float16  # never int8
        self.facts = Facts(
            precision=compute_type,
            weight_bytes=held,
            step_bytes=held - embedding,
            token_bytes=pool_token_bytes(c, cache),
            details=f"ctranslate2 {ctranslate2.__version__}",
        )

    def run(self, prompts: list[list[int]], answer: int) -> Timing:
        words = [[word(token) if token else "<unk>" for token in prompt] for prompt in prompts]
        times = [0.0] * answer

        def note(result: Any) -> bool:
            times[result.step] = time.perf_counter()  # of the last row of the step
            return False

        start = time.perf_counter()
        results = self._generator.generate_batch(
            words, max_length=answer, end_token=[], include_prompt_in_result=False, sampling_topk=1, callback=note
        )
        first = times[0] - start
        return Timing(
            total_s=times[-1] - start,
            first_s=[first] * len(prompts),
            prefill_s=first,
            step_s=list(np.diff(times)),
            answers=[result.sequences_ids[0] for result in results],
        )

    def peak_bytes(self) -> int:
        return peak_memory(self._device)


def _compute_type(job: PeerJob) -> str:
    import ctranslate2

    supported = ctranslate2.get_supported_compute_types(job.device)
    compute_type = "int8_float32" if job.int8 else job.dtype
    if compute_type not in supported:
        raise ValueError(f"CTranslate2 does not compute in {compute_type} here, but in {', '.join(sorted(supported))}")
    return compute_type


def _spec(job: PeerJob, read: Read) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    c = job.config
    if c.attention_bias:
        raise ValueError("CTranslate2's Gemma has no biases")
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        c.num_hidden_layers,
        c.num_attention_heads,
        activation=common_spec.Activation.GELUTanh,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=c.rope_theta,
        num_heads_kv=None if c.num_key_value_heads == c.num_attention_heads else c.num_key_value_heads,
        head_dim=c.head_dim,
    )
    decoder = spec.decoder
    decoder.scale_embeddings, decoder.start_from_zero_embedding = True, False
    decoder.embeddings.weight = read("model.embed_tokens.weight")
    decoder.embeddings.multiply_by_sqrt_depth = c.embedding_scale
    decoder.projection.weight = decoder.embeddings.weight if c.tie_word_embeddings else read("lm_head.weight")
    _norm(decoder.layer_norm, read, "model.norm")
    for index, layer in enumerate(decoder.layer):
        prefix = f"model.layers.{index}"
        _norm(layer.self_attention.layer_norm, read, f"{prefix}.input_layernorm")
        _norm(layer.ffn.layer_norm, read, f"{prefix}.post_attention_layernorm")
        qkv = [read(f"{prefix}.self_attn.{name}_proj.weight") for name in "qkv"]
        layer.self_attention.linear[0].weight = torch.cat(qkv)
        layer.self_attention.linear[1].weight = read(f"{prefix}.self_attn.o_proj.weight")
        layer.ffn.linear_0.weight = read(f"{prefix}.mlp.gate_proj.weight")
        layer.ffn.linear_0_noact.weight = read(f"{prefix}.mlp.up_proj.weight")
        layer.ffn.linear_1.weight = read(f"{prefix}.mlp.down_proj.weight")
    spec.register_vocabulary(["<unk>", *(word(index) for index in range(1, c.vocab_size))])
    spec.config.unk_token, spec.config.eos_token, spec.config.bos_token = "<unk>", word(1), word(2)
    spec.config.layer_norm_epsilon = c.rms_norm_eps
    return spec


def _norm(spec: Any, read: Read, path: str) -> None:
    spec.gamma = read(f"{path}.weight")
    spec.layer_norm_use_residual = True  # 1 + gamma
