"""The settings of runners/compile_matrix.py."""

from __future__ import annotations

from typing import Any

from graph_gemma.runners.settings.declared.model import ABOUT_PASSES, PASSES, block_sizes, dtypes, sizes
from graph_gemma.runners.settings.schema import Settings, setting, switches


class CompileMatrixSettings(Settings):
    """Lower Gemma's steps for every rank count, without weights or a device, and print what each costs as a table."""

    passes: dict[str, dict[str, Any]] = switches(ABOUT_PASSES, PASSES)
    soc: str = setting("atlas_800i_a2", "The Ascend chip to lower for, one of graph_model/chips/registry.py.")
    models: tuple[str, ...] = setting(
        ["gemma_2b", "gemma_7b"], "Models to lower, by the names of conf/model.", choices=sizes
    )
    world_sizes: tuple[int, ...] = setting([1, 2, 4, 8], "Numbers of ranks to lower each for.", least=1)
    dtypes: tuple[str, ...] = setting(
        ["float16", "bfloat16"],
        "Dtypes to lower each in; one that the chip does not have is left out.",
        choices=dtypes,
    )
    schemes: tuple[str, ...] = setting(
        ["none", "w8a8"],
        "How to quantize each: none, w8a8, w8a8_dynamic, w8a16; with +kv8, or kv8 alone, the KV cache too.",
    )
    keep_float: tuple[str, ...] | None = setting(
        None,
        "Linear layers that stay in floating point where others are quantized; null: as conf/quant has it for each "
        "scheme.",
    )
    batch_size: int = setting(1, "Rows of the decode step.", least=1, most=65536)
    context: int = setting(2048, "Tokens that each row's block table has room for.", least=1)
    prefill_tokens: int = setting(512, "Tokens of the prefill step.", least=1)
    block_size: int = setting(128, "Tokens per block of the KV cache.", choices=block_sizes)
    memory_fraction: float = setting(
        0.9, "Share of a chip's memory that weights and KV cache may take.", above=0, most=1
    )
    write: str | None = setting(
        None,
        "A Markdown file whose table of this chip is replaced, between the lines <!-- compile_matrix CHIP --> and <!-- "
        "end -->.",
    )
    cache_dir: str | None = setting(
        None, "Where the CANN stand-in is kept; null: graph_gemma in the user's cache directory."
    )
