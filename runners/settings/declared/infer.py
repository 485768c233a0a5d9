"""The settings of runners/infer.py, which most other commands share."""

from __future__ import annotations

from typing import Any

from graph_gemma.runners.settings.declared.model import ABOUT_PASSES, PASSES, Model, Quant, Ranks, block_sizes, dtypes
from graph_gemma.runners.settings.schema import Settings, group, setting, switches

SMALLEST_CHUNK = 64  # prompt tokens of the smallest step


class Sampling(Settings):
    """How tokens are chosen."""

    temperature: float = setting(
        0.0, "0: always the most likely token. Above 0: sample, the higher the more freely.", least=0
    )
    top_k: int = setting(0, "Sample among the k most likely tokens; 0: no limit.", least=0)
    top_p: float = setting(
        1.0,
        "Sample among the fewest most likely tokens that reach this probability together; 1: no limit.",
        above=0,
        most=1,
    )
    seed: int | None = setting(
        0,
        "Key of the random numbers; prompt i of a run takes seed + i. null: other ones in each run.",
        least=0,
        most=2**64 - 1,
    )


class InferSettings(Settings):
    """Continue prompts with a Gemma model. Without arguments: the demo model on its demo prompts."""

    model: Model = group(Model, option="demo")
    quant: Quant = group(Quant, "How a floating-point checkpoint is quantized while it is loaded.", option="none")
    passes: dict[str, dict[str, Any]] = switches(ABOUT_PASSES, PASSES)
    weights: str = setting(
        "checkpoint",
        "checkpoint: read model.path; random: random weights of the model's shape (for speed and memory only).",
        choices=("checkpoint", "random"),
    )
    dtype: str | None = setting(
        None,
        "float16, bfloat16 or float32; null: as config.json says, or else as the weights are stored.",
        choices=dtypes,
    )
    backend: str = setting(
        "auto",
        "auto, eager, inductor or torchair; auto: inductor where it can compile, else eager.",
        choices=("auto", "eager", "inductor", "torchair"),
    )
    soc: str | None = setting(
        None,
        "The Ascend chip to lower for, with backend=torchair: one of graph_model/chips/registry.py, null: "
        "atlas_800i_a2. Without CANN the graph is executed on the CPU, by an interpreter.",
    )
    norm: str = setting(
        "exact",
        "With backend=torchair, exact: norms are rounded once, as Gemma's are; fused: addition and norm are one "
        "kernel, which rounds more often.",
        choices=("exact", "fused"),
    )
    world_size: int = setting(
        1,
        "Number of devices that share the model (tensor parallel). More than one: as many processes are started, or "
        "those that torchrun started are used.",
        least=1,
    )
    ranks: Ranks = group(Ranks)
    block_size: int = setting(64, "Tokens per block of the KV cache: 16, 32, 64 or 128.", choices=block_sizes)
    max_batch_size: int = setting(8, "Most sequences in one decode step.", least=1)
    max_prefill_batch_size: int = setting(4, "Most prompts in one prefill step.", least=1)
    max_seq_len: int | None = setting(
        None,
        "Most tokens of prompt and answer together; null: 4096, or the model's max_position_embeddings if that is "
        "less.",
        least=2,
    )
    max_prefill_tokens: int = setting(
        512,
        "Most prompt tokens in one step, padding included; longer prompts are computed in chunks.",
        least=SMALLEST_CHUNK,
        multiple_of=SMALLEST_CHUNK,
    )
    num_blocks: int | None = setting(
        None,
        "Blocks of the KV cache, at most what free memory has room for besides the weights; null: as many as "
        "max_batch_size sequences of max_seq_len need, within memory_fraction.",
        least=1,
    )
    memory_fraction: float = setting(
        0.8, "Share of the free memory that weights and KV cache may take.", above=0, most=1
    )
    prompts: tuple[str, ...] | None = setting(
        None,
        "What to continue, a list of texts. Without prompts, prompts_file and prompt_token_ids: the demo's own "
        "prompts.",
    )
    prompts_file: str | None = setting(
        None,
        'A file of prompts: .txt, a prompt per line; .jsonl, per line {"prompt": TEXT} or {"messages": [{"role", '
        '"content"}]}, and max_new_tokens, ignore_eos, stop, temperature, top_k, top_p or seed for this prompt.',
        reads=True,
    )
    prompt_token_ids: tuple[tuple[int, ...], ...] | None = setting(
        None, "What to continue as token ids, [[2,5,7],[2,9]]; taken as they are, no special token is added."
    )
    chat: bool = setting(False, "Render each prompt with the tokenizer's chat template, as the user's first message.")
    chat_template: str | None = setting(None, "Another chat template: Jinja text, or a file that has it.", reads=True)
    max_new_tokens: int = setting(128, "Most tokens of an answer.", least=1)
    ignore_eos: bool = setting(
        False,
        "Go on after a token that ends an answer: eos_token_id of config.json and of generation_config.json, or the "
        "tokenizer's eos_token.",
    )
    sampling: Sampling = group(Sampling)
    stop: tuple[str, ...] = setting([], "An answer ends before the first of these texts.")
    output_file: str | None = setting(
        None,
        "Write a JSON line per finished request to this file: its prompt, answer, times, and the backend that gave it.",
    )
    overwrite: bool = setting(
        False, "Replace results that are there already: of output_file, or of what else the command writes."
    )
    dump_dir: str | None = setting(None, "Write the graph after each pass to this directory.")
    check: bool = setting(
        False,
        "Run each pass's graph before and after it and compare; compare the answers with the plain model. With "
        "backend=torchair also compare every run of a lowered graph, node by node, with the graph that was lowered.",
    )
    verbosity: int = setting(
        1,
        "What is said on stderr while a model is loaded and its steps are compiled, 0: nothing; 1: each phase as it "
        "begins; 2: each with its time. On a terminal 1 rewrites one line.",
        choices=(0, 1, 2),
    )
    cache_dir: str | None = setting(
        None, "Where compiled steps are kept; null: graph_gemma in the user's cache directory."
    )
    cache_limit_gb: float | None = setting(
        8,
        "The size that cache_dir may grow to, in GB: what was not used for longest is removed. null: any size.",
        least=0,
        must="a number of gigabytes from 0 on, or null for no limit",
    )
