"""The settings of graph-gemma quantize."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.model import Model, Quant
from graph_gemma.runners.settings.schema import Settings, group, required, setting


class Calibration(Settings):
    """What w8a8 finds its scales on."""

    file: str | None = setting(
        None,
        'A JSONL file, a line per text: {"prompt": TEXT}, {"inputs_pretokenized": TEXT} as MindIE and ModelSlim have '
        "them, or BoolQ's title, passage, question and answer; or a .json file with a list of texts. null: texts of "
        "the demo's world.",
        reads=True,
    )
    # Ranges are found on so many tokens, evenly taken from all texts.
    samples: int = setting(64, "Most texts to use.", least=1, most=8192)


class QuantizeSettings(Settings):
    """Write a quantized checkpoint, which graph-gemma infer runs as it is. Without arguments but output_dir: the demo
    model in w8a8."""

    model: Model = group(Model, option="demo")
    quant: Quant = group(Quant, "How to quantize.", option="w8a8")
    output_dir: str = required(
        "the directory to write", "The directory of the new checkpoint; it appears when it is complete."
    )
    overwrite: bool = setting(False, "Replace a checkpoint in output_dir.")
    format: str = setting(
        "atb",
        "Names of files and tensors: atb (ModelSlim, MindIE-LLM) or vllm_ascend. graph-gemma infer reads both.",
        choices=("atb", "vllm_ascend"),
    )
    calibration: Calibration = group(Calibration)
