"""The settings of runners/benchmark.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.schema import setting


class BenchmarkSettings(InferSettings):
    """Measure speed: random prompts, end-of-sequence ignored, warm-up excluded. The model's settings are graph-gemma
    infer's."""

    phase: str = setting(
        "speed",
        "speed: time to the first token and per further token; compile: what getting ready costs, cold and warm; host: "
        "time per step outside the compiled graph; max_batch: the largest batch within latency_limit_ms.",
        choices=("speed", "compile", "host", "max_batch"),
    )
    lengths: tuple[tuple[int, ...], ...] | None = setting(
        None,
        "[prompt tokens, answer tokens] of each measurement; null: those of [[2048,2048],[1024,1024],[512,512],"
        "[256,256]] that there is room for.",
        least=1,
        must="a list of pairs [prompt tokens, answer tokens], as in [[256,256]], or null",
    )
    batch_sizes: tuple[int, ...] = setting([1], "Requests at once.", least=1)
    repeats: int = setting(
        3,
        "How often each measurement is repeated, each time on new prompts; the results give median, smallest and "
        "largest.",
        least=1,
    )
    peers: tuple[str, ...] = setting(
        [],
        "Measured in turn with ours, on the same weights and prompts, each in a process of its own: floating_point "
        "(our own engine, not quantized), full_attention (the same, without windows), transformers (generate, eager), "
        "transformers_compiled (generate, static cache, compiled), llama_cpp, openvino, ctranslate2. One that is not "
        "installed, or that fails, is reported and left out.",
    )
    at_once: int = setting(
        3,
        "Most runners, ours included, that have the weights at once. More peers than that are measured in rounds, ours "
        "in each.",
        least=2,
    )
    latency_limit_ms: float = setting(
        50.0,
        "With phase=max_batch: most milliseconds per answer token after the first, of nine steps in ten.",
        above=0,
    )
    largest_batch: int = setting(256, "With phase=max_batch: the search ends at this batch.", least=1)
    max_batch_size: int | None = setting(  # type: ignore[assignment]
        None, "Most sequences in one decode step; null: the largest of batch_sizes.", least=1
    )
    max_seq_len: int | None = setting(
        None, "Most tokens of prompt and answer together; null: as many as the longest of lengths has.", least=2
    )
    results_dir: str = setting(
        "benchmark_results",
        "Directory for benchmark.csv and benchmark.html (compile.csv, host.csv, max_batch.csv of the other phases).",
    )
