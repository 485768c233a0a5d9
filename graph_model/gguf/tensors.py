"""The tensors of a GGUF file as those of a Hugging Face checkpoint: names, shapes, blocks dequantized one by one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.families import Family, family_of
from graph_gemma.graph_model.foreign import some
from graph_gemma.graph_model.gguf.header import Header, TensorPlace

_OUTSIDE = {
    Family.embedding: "token_embd.weight",
    f"{Family.norm_path}.weight": "output_norm.weight",
    f"{Family.head_path}.weight": "output.weight",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_CHUNK = 1 << 22  # numbers that are dequantized at a time


def check_package() -> None:
    """Raise UserError with the pip line if the package gguf, which knows the types of blocks, is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(
            "model.path: to read a GGUF file the package gguf is needed, which is not installed. Run: pip install "
            "'graph-gemma[gguf]' (or pip install gguf)."
        ) from None


def stored_names(config: GemmaConfig) -> dict[str, str]:
    """The name in the file of each tensor that a model of `config` needs."""
    family = family_of(config)
    inside = {**_INSIDE, "post_attention_layernorm": "post_attention_norm"}
    if not family.norms_branches:
        inside["post_attention_layernorm"] = "ffn_norm"  # of Gemma 1, where it stands before the MLP
    found = {}
    for name in family.tensors:
        index = family.layer_index(name)
        if index is None:
            found[name] = _OUTSIDE[name]
        else:
            path, _, kind = name.removeprefix(f"{family.layer_path(index)}.").rpartition(".")
            found[name] = f"blk.{index}.{inside[path]}.{kind}"
    return found


def check_tensors(header: Header, config: GemmaConfig) -> str:
    """Check the file's tensors against the config; returns how many there are of each type of block.

    Raises UserError for tensors that are missing or of another model, shapes, unknown blocks, and data past the end.
    """
    names, shapes = stored_names(config), family_of(config).tensors
    missing = [stored for stored in names.values() if stored not in header.tensors]
    others = sorted(set(header.tensors).difference(names.values()))
    if missing or others:
        found = [f"{len(missing)} of the model's {len(names)} tensors are missing: {some(missing)}"] * bool(missing)
        found += [f"{len(others)} tensors are not part of this model: {some(others)}"] * bool(others)
        raise UserError(
            f"{header.path}: {'; '.join(found)}. The file must hold a whole {config.model_type} model and nothing "
            "else. Give the file as llama.cpp's converter wrote it."
        )
    counts: Counter[str] = Counter()
    for name, stored in names.items():
        place = header.tensors[stored]
        if place.shape != shapes[name]:
            raise UserError(
                f"{header.path}: {stored} has the shape {list(place.shape)}, but the file's other fields ask for "
                f"{list(shapes[name])}. Copy it again from the original."
            )
        blocks = _blocks(header, stored, place)
        end = place.offset + blocks.bytes_of(place.shape)
        if end > header.file_size:
            raise UserError(
                f"{header.path}: {stored} ends at byte {end}, and the file has {header.file_size} bytes. It is cut "
                "off: copy it again from the original."
            )
        counts[blocks.name] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def read_tensors(header: Header, config: GemmaConfig) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the checkpoint, in the model's order and in its dtype; one tensor is held at a time."""
    family = family_of(config)
    stored_plus_one = {f"{path}.weight" for path, norm in family.norms.items() if norm.one_plus}
    for name, stored in stored_names(config).items():
        yield name, _read(header, stored, getattr(torch, config.dtype), minus=float(name in stored_plus_one))


def _read(header: Header, stored: str, dtype: torch.dtype, minus: float) -> Tensor:
    """A tensor less `minus`, computed in float32 and rounded once."""
    place = header.tensors[stored]
    blocks = _blocks(header, stored, place)
    columns = place.shape[-1]
    rows = math.prod(place.shape[:-1])
    result = torch.empty(rows, columns, dtype=dtype)
    step = max(1, _CHUNK // columns)
    with header.path.open("rb") as file:
        file.seek(place.offset)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            values = blocks.dequantize(np.fromfile(file, np.uint8, count * blocks.bytes_of((columns,))), count)
            result[start : start + count] = torch.from_numpy(values) - minus if minus else torch.from_numpy(values)
            if not result[start : start + count].isfinite().all():
                raise UserError(
                    f"{header.path}: {stored} holds numbers that are NaN or infinite in {str(dtype)[6:]}. Copy the "
                    "file again from the original, or give dtype=float32."
                )
    return result.reshape(place.shape)


class _Blocks:
    """A type of blocks, as the package gguf knows it."""

    def __init__(self, kind: Any, size: int, bytes_each: int) -> None:
        self.kind, self.size, self.bytes_each = kind, size, bytes_each
        self.name: str = kind.name

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) // self.size * self.bytes_each

    def dequantize(self, content: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
        """float32 [rows, columns]."""
        from gguf import quants

        with np.errstate(all="ignore"):  # a NaN is found and named by the caller
            return np.array(quants.dequantize(content.reshape(rows, -1), self.kind), dtype=np.float32)


def _blocks(header: Header, stored: str, place: TensorPlace) -> _Blocks:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(place.block_type)
        blocks = _Blocks(kind, *GGML_QUANT_SIZES[kind])
        blocks.dequantize(np.zeros(blocks.bytes_each, np.uint8), 1)
    except (ValueError, KeyError, NotImplementedError):
        known = next((kind.name for kind in GGMLQuantizationType if kind == place.block_type), "")
        raise UserError(
            f"{header.path}: {stored} has blocks of type {place.block_type}{known and f' ({known})'}, which gguf "
            f"{version('gguf')} does not dequantize. Give a file with others (Q8_0, Q4_K, BF16, ...), or update "
            "the package: pip install --upgrade gguf."
        ) from None
    if place.shape[-1] % blocks.size:
        raise UserError(
            f"{header.path}: {stored} has rows of {shown(place.shape[-1])} numbers, which are no whole blocks of "
            f"{blocks.size} ({blocks.name}). Copy it again from the original."
        )
    return blocks
