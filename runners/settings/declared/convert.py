"""The settings of runners/convert.py."""

from __future__ import annotations

from runners.settings.schema import Settings, group, required, setting


class Checkpoint(Settings):
    """The checkpoint."""

    path: str = required(
        "the checkpoint's directory",
        "The checkpoint's directory: config.json and pytorch_model.bin, or shards with pytorch_model.bin.index.json.",
    )


class ConvertSettings(Settings):
    """Turn the pytorch_model*.bin of a checkpoint directory into safetensors, in the same directory. Shared tensors are
    written once; the result is read again and compared bit for bit before it takes its place."""

    model: Checkpoint = group(Checkpoint)
    overwrite: bool = setting(False, "Replace safetensors that are there already.")
    max_shard_bytes: int = setting(
        4_000_000_000,
        "Largest size of one file in bytes; above it the weights are split into shards with an index.",
        least=1,
    )
