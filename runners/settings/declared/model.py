"""Groups of settings that several commands have: the model, its quantization, the passes, the ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from graph_gemma.runners.settings.schema import Option, Settings, Switch, setting


def schemes() -> Iterable[str]:
    """Names of the quantization schemes, which --help need not import."""
    from graph_gemma.graph_model.quantization.linears import SCHEMES

    return tuple(SCHEMES)


def dtypes() -> Iterable[str]:
    """Names of the dtypes, which --help need not import."""
    from graph_gemma.graph_model.config import DTYPES

    return tuple(DTYPES)


def models() -> Iterable[str]:
    """Names of the models, which --help need not import."""
    return "demo", *sizes()


def sizes() -> tuple[str, ...]:
    """The shapes that have a name; graph_model.config is imported when they are asked for."""
    from graph_gemma.graph_model.config import NAMED_CONFIGS

    return tuple(NAMED_CONFIGS)


def block_sizes() -> Iterable[int]:
    """Tokens per block of the KV cache, which --help need not import."""
    from graph_gemma.graph_model.bucket import BLOCK_SIZES

    return BLOCK_SIZES


class Model(Settings):
    """Which model."""

    name: str = setting(
        "demo",
        "Which model; a named shape where there is no checkpoint to read it from.",
        choices=models,
    )
    path: str | None = setting(
        None,
        "Directory of a Hugging Face checkpoint; null: the demo's, which comes with the package. The named sizes need "
        "none with weights=random.",
        reads=True,
    )

    options: ClassVar[dict[str, Option]] = {
        "demo": Option("The small Gemma that is shipped with the package."),
        "gemma_2b": Option("Gemma-2B: 18 layers, hidden 2048, 8 heads over one KV head.", {"name": "gemma_2b"}),
        "gemma_7b": Option("Gemma-7B: 28 layers, hidden 3072, 16 heads of 256.", {"name": "gemma_7b"}),
        "gemma2_2b": Option("Gemma 2 2B: 26 layers, hidden 2304, 8 heads, 4 KV heads.", {"name": "gemma2_2b"}),
        "gemma2_9b": Option("Gemma 2 9B: 42 layers, hidden 3584, 16 heads, 8 KV heads.", {"name": "gemma2_9b"}),
        "gemma2_27b": Option("Gemma 2 27B: 46 layers, hidden 4608, 32 heads of 128.", {"name": "gemma2_27b"}),
        "gemma3_270m": Option("Gemma 3 270M: 18 layers, hidden 640, 4 heads, 1 KV head.", {"name": "gemma3_270m"}),
        "gemma3_1b": Option("Gemma 3 1B: 26 layers, hidden 1152, 4 heads, 1 KV head.", {"name": "gemma3_1b"}),
        "gemma3_4b": Option("The text of Gemma 3 4B: 34 layers, hidden 2560, 8 heads.", {"name": "gemma3_4b"}),
        "gemma3_12b": Option("The text of Gemma 3 12B: 48 layers, hidden 3840, 16 heads.", {"name": "gemma3_12b"}),
        "gemma3_27b": Option("The text of Gemma 3 27B: 62 layers, hidden 5376, 32 heads.", {"name": "gemma3_27b"}),
    }


_SENSITIVE = ["down_proj", "lm_head"]


class Quant(Settings):
    """How linear layers and the KV cache are quantized."""

    scheme: str | None = setting(None, "w8a8, w8a8_dynamic or w8a16; null: none.", choices=schemes)
    keep_float: tuple[str, ...] = setting(
        [], "Linear layers that stay in floating point: paths or their ends, * for any text."
    )
    kv8: bool = setting(False, "When the model runs, keep keys and values in int8, with a scale per token and head.")
    anti_outlier: str = setting(
        "none",
        "Before graph-gemma quantize makes w8a8, move outliers of activations into the weights before them: smooth, "
        "or none.",
        choices=("smooth", "none"),
    )
    range: str = setting(
        "minmax",
        "Range of an activation that int8 covers when graph-gemma quantize makes w8a8: minmax; percentile, the middle "
        "99.98 %; mse, the least squared error.",
        choices=("minmax", "percentile", "mse"),
    )

    options: ClassVar[dict[str, Option]] = {
        "none": Option("Floating point; a quantized checkpoint runs as it is quantized, without this setting."),
        "w8a8": Option(
            "int8 weights per output channel; activations to int8 with one calibrated scale and offset per tensor. Its "
            "scales come with a checkpoint that graph-gemma quantize writes.",
            {"scheme": "w8a8", "keep_float": _SENSITIVE, "anti_outlier": "smooth", "range": "mse"},
        ),
        "w8a8_dynamic": Option(
            "int8 weights per output channel; activations to int8 per token, at run time. No calibration.",
            {"scheme": "w8a8_dynamic", "keep_float": _SENSITIVE},
        ),
        "w8a16": Option(
            "int8 weights per output channel, the head's too; activations in floating point. No calibration.",
            {"scheme": "w8a16"},
        ),
        "kv8": Option(
            "Only the KV cache in int8, with a scale per token and head. With another scheme: quant.kv8=true.",
            {"kv8": True},
        ),
    }


class Ranks(Settings):
    """Where these processes run and meet."""

    devices: tuple[int, ...] | None = setting(
        None,
        "Numbers of the devices to use, in the order of the ranks; null: from 0 on. An Atlas 300I DUO card has two.",
        least=0,
    )
    master_address: str = setting("127.0.0.1", "Where the ranks meet; under torchrun, its own setting counts.")
    master_port: int | None = setting(
        20030,
        "The port there; null: a free one.",
        least=1,
        most=65535,
        must="a port from 1 to 65535, or null for a free one",
    )
    timeout: int = setting(
        600,
        "Seconds that a rank waits for the others, which may still be loading or compiling.",
        least=1,
        most=31_536_000,
    )


PASSES_FILE = Path(__file__).resolve().parents[3] / "conf" / "passes" / "default.yaml"
# Every pass, in the order in which they run. Passes say themselves what they do and which options they have, but to ask
# them takes torch, which --help does not wait for; conf_files writes down what they say.
PASSES = {
    name: Switch(
        " ".join(about.replace("# ", "").split()),
        {option: json.loads(value) for option, value in re.findall(r"(\w+): (\w+)", values)},
    )
    for about, name, values in re.findall(
        r"((?:^# .*\n)+)^(\w+): \{(.+)\}$", PASSES_FILE.read_text(encoding="utf-8"), re.MULTILINE
    )
}
ABOUT_PASSES = "Every pass, in the order in which they run. passes.NAME.enabled=false leaves one out."
