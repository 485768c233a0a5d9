"""The report at the end of infer.py: speed, memory, steps, KV cache."""

from __future__ import annotations

from statistics import mean

from graph_model.stated import ends_by_file, stated_dtype
from runners.backends.memory import peak_memory
from runners.engine.result import RequestResult
from runners.io.tokenizer import end_of_answers
from runners.llm import LLM
from runners.settings.model_settings import ModelSettings


def print_report(llm: LLM, results: list[RequestResult]) -> None:
    """Print the figures of a finished run."""
    model, statistics = llm.loaded.model, llm.engine.statistics
    compiled = model.report
    ttft = [result.ttft_s for result in results if result.ttft_s is not None]
    usable = model.num_blocks - model.num_scratch_blocks
    peak = peak_memory(model.recipe.backend.device)
    lines = [
        ("backend", llm.loaded.backend),
        ("dtype", _dtype(llm.settings)),
        ("answers end at", _ends(llm)),
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


def _dtype(settings: ModelSettings) -> str:
    """The dtype, and where it comes from."""
    directory = settings.checkpoint_dir
    if settings.dtype != settings.config.dtype:
        return f"{settings.dtype} (the setting dtype)"
    where = "" if directory is None else stated_dtype(directory)[1]
    return f"{settings.dtype} ({where or 'the default'})"


def _ends(llm: LLM) -> str:
    """The token ids that end an answer, with the files that name them; the tokenizer's if no other file has it."""
    settings = llm.settings
    if settings.checkpoint_dir is None:
        return " ".join(map(str, settings.config.eos_token_ids))
    found = {file: ids for file, ids in ends_by_file(settings.checkpoint_dir).items() if ids}
    own = end_of_answers(llm.tokenizer)
    if not set(own) <= set(settings.config.eos_token_ids):
        found["tokenizer_config.json"] = own
    return ", ".join(f"{' '.join(map(str, ids))} ({file})" for file, ids in found.items()) or "no token"
