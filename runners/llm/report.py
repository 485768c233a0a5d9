"""What a run prints at its end: speed, memory, and what the engine did."""

from __future__ import annotations

from statistics import mean

from runners.backends.memory import peak_memory
from runners.engine.result import RequestResult
from runners.llm import LLM


def print_report(llm: LLM, results: list[RequestResult]) -> None:
    """Print the figures of a finished run."""
    model, statistics = llm.loaded.model, llm.engine.statistics
    compiled = model.report
    ttft = [result.ttft_s for result in results if result.ttft_s is not None]
    usable = model.num_blocks - model.num_scratch_blocks
    peak = peak_memory(model.recipe.backend.device)
    lines = [
        ("backend", llm.loaded.backend),
        ("steps", f"{compiled.compiled} compiled, {compiled.from_cache} from the cache, in {compiled.seconds:.1f} s"),
        ("time to first token", f"{mean(ttft) * 1e3:.1f} ms" if ttft else "-"),
        ("prefill", f"{statistics.prefill_tokens} tokens, {statistics.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{statistics.decode_tokens} tokens, {statistics.decode_tokens_per_s:.1f} tokens/s"),
        ("KV cache", f"{statistics.peak_blocks} of {usable} blocks used, {statistics.preemptions} preemptions"),
        ("peak memory", f"{peak / 1e6:.0f} MB (weights {model.weight_bytes / 1e6:.0f} MB)"),
    ]
    print()
    for name, value in lines:
        print(f"{name + ':':21}{value}")
