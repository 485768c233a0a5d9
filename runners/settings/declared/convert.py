"""The settings of runners/convert.py."""

from __future__ import annotations

from graph_gemma.graph_model.config import DTYPES
from graph_gemma.runners.settings.schema import Settings, group, required, setting


class Checkpoint(Settings):
    """The checkpoint."""

    path: str = required(
        "the checkpoint's directory or a GGUF file",
        "The checkpoint's directory: config.json and pytorch_model.bin, or shards with pytorch_model.bin.index.json. "
        "Or a GGUF file of a Gemma 1, 2 or 3; needs the extra 'gguf'.",
    )


class ConvertSettings(Settings):
    """Turn the pytorch_model*.bin of a checkpoint directory into safetensors, in the same directory: shared tensors are
    written once; the result is read again and compared bit for bit before it takes its place. Or turn a GGUF file into
    a checkpoint directory, with config.json and tokenizer."""

    model: Checkpoint = group(Checkpoint)
    output_dir: str | None = setting(None, "The directory to make of a GGUF file.")
    dtype: str | None = setting(
        None,
        "The dtype of the weights that are made of a GGUF file; null: float32, which holds its numbers exactly.",
        choices=DTYPES,
    )
    overwrite: bool = setting(False, "Replace safetensors that are there already, or what an earlier run made.")
    max_shard_bytes: int = setting(
        4_000_000_000,
        "Largest size of one file in bytes; above it the weights are split into shards with an index.",
        least=1,
    )
