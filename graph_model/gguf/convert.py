"""Convert a GGUF file to a Hugging Face checkpoint: config.json, safetensors, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from graph_gemma.graph_model.checkpoint.writer import MAX_SHARD_BYTES, check_target, save_checkpoint
from graph_gemma.graph_model.gguf.config import assumed, read_config
from graph_gemma.graph_model.gguf.header import read_header
from graph_gemma.graph_model.gguf.tensors import check_package, check_tensors, read_tensors
from graph_gemma.graph_model.gguf.tokenizer import tokenizer_files


def convert_gguf(
    path: Path,
    output_dir: Path,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a Gemma 1, 2 or 3 of a GGUF file as a checkpoint; `output_dir` appears when all of it is written.

    dtype: of the weights. float32 holds the dequantized blocks exactly. No more than a shard is in memory. `report` is
    told of each step. Raises UserError for bad input, before anything is written where the header shows it.
    """
    check_package()
    check_target(output_dir, overwrite=overwrite, setting="output_dir", inputs={"model.path": path})
    header = read_header(path)
    config = read_config(header, dtype)
    blocks = check_tensors(header, config)
    files = tokenizer_files(header)
    report(f"read {path.name}: {config.model_type}, {config.num_hidden_layers} layers, tensors in {blocks}")
    if line := assumed(config):
        report(f"not in the file, as llama.cpp computes it: {line}")
    if not files:
        report("the file holds no tokenizer, so none is written: copy tokenizer.json from the original model")
    save_checkpoint(
        output_dir,
        read_tensors(header, config),
        config.to_json(),
        files,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )
