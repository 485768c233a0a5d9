"""The report at the end of infer.py: speed, memory, steps, KV cache."""

from __future__ import annotations

from statistics import mean

from graph_gemma.graph_model.footprint import pool_token_bytes
from graph_gemma.graph_model.stated import ends_by_file, stated_dtype
from graph_gemma.runners.backends.memory import peak_memory
from graph_gemma.runners.engine.model import window_blocks
from graph_gemma.runners.engine.result import RequestResult
from graph_gemma.runners.io.tokenizer import end_of_answers
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.model_settings import ModelSettings


def print_report(llm: LLM, results: list[RequestResult]) -> None:
    """Print the figures of a finished run."""
    model, statistics = llm.loaded.model, llm.engine.statistics
    compiled = model.report
    ttft = [result.ttft_s for result in results if result.ttft_s is not None]
    peak = peak_memory(model.recipe.backend.device)
    lines = [
        ("backend", llm.loaded.backend),
        ("dtype", _dtype(llm.settings)),
        ("answers end at", _ends(llm)),
        ("steps", f"{compiled.compiled} compiled, {compiled.from_cache} from the cache, in {compiled.seconds:.1f} s"),
        ("time to first token", f"{mean(ttft) * 1e3:.1f} ms" if ttft else "-"),
        ("prefill", f"{statistics.prefill_tokens} tokens, {statistics.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{statistics.decode_tokens} tokens, {statistics.decode_tokens_per_s:.1f} tokens/s"),
        *_cache(llm),
        ("peak memory", f"{peak / 1e6:.0f} MB (weights {model.weight_bytes / 1e6:.0f} MB)"),
    ]
    print()
    for name, value in lines:
        print(f"{name and name + ':':21}{value}")


def _cache(llm: LLM) -> list[tuple[str, str]]:
    """Of each pool of blocks: how many were in use, bytes of a token, and of the longest sequence."""
    model, statistics, longest = llm.loaded.model, llm.engine.statistics, llm.loaded.model.max_seq_len
    recipe, scratch, preemptions = model.recipe, model.num_scratch_blocks, f", {statistics.preemptions} preemptions"
    pools = pool_token_bytes(recipe.config, recipe.dtype, recipe.quantization, recipe.shard)
    lines: list[tuple[str, str]] = []
    for window, token in pools.items():
        held, used, blocks = -(-longest // model.block_size), statistics.peak_blocks, model.num_blocks
        where, name = "", "KV cache"
        if window is not None:
            held = window_blocks(window, model.buckets.chunk_lengths[-1], model.block_size, longest)
            used, blocks = statistics.peak_window_blocks, model.num_window_blocks
            where, name = f" in layers with a window of {window}", "KV cache, windows"
        sequence = held * model.block_size * token
        lines += [
            (name, f"{used} of {blocks - scratch} blocks used" + ("" if lines else preemptions)),
            ("", f"{token / 1e3:.1f} kB per token, {sequence / 1e6:.1f} MB per sequence of {longest}{where}"),
        ]
    return lines


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
