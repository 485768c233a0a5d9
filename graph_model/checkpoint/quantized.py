"""Quantized checkpoints in ModelSlim's layout: what their description says, and what tensors they must hold.

Beside weights and config.json ("quantize": scheme) lies quant_model_description_<scheme>.json, or
quant_model_description.json: an object that maps each tensor's name to its scheme or FLOAT. A W8A8 linear has weight
(int8), input_scale, input_offset, quant_bias and deq_scale; vllm-ascend's dialect adds weight_scale and weight_offset.
The other schemes have weight (int8), weight_scale and weight_offset. Shapes and dtypes: `QUANTIZED_TENSORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_model.checkpoint.anti_outlier import NORM_BIAS, check_description_of_norms, check_recipe
from graph_model.checkpoint.expected import FLOAT_DTYPES, HEAD, TensorHeader
from graph_model.config import GemmaConfig
from graph_model.errors import UserError
from graph_model.foreign import some
from graph_model.json_file import read_json_object
from graph_model.quantization.linears import SCHEMES, Quantization, Scheme, group_of, linear_paths, split_group
from graph_model.weights.quantized import decode_scale

FLOAT = "FLOAT"
DESCRIPTION_NAMES: dict[Scheme, str] = {"w8a8": "W8A8", "w8a8_dynamic": "W8A8_DYNAMIC", "w8a16": "W8A16"}

_FLOATS = tuple(FLOAT_DTYPES)
# Per tensor of a quantized linear with n outputs and k inputs: its shape, and safetensors' names of legal dtypes.
QUANTIZED_TENSORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weight": ("n k", ("I8",)),
    "input_scale": ("1", _FLOATS),
    "input_offset": ("1", (*_FLOATS, "I8")),
    "quant_bias": ("n", ("I32",)),
    "deq_scale": ("n", ("I64", "F32")),
    "weight_scale": ("n 1", _FLOATS),
    "weight_offset": ("n 1", _FLOATS),
}
_STATIC = ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
_SYMMETRIC = ("weight", "weight_scale")


def read_quantization(directory: Path, config: GemmaConfig) -> Quantization | None:
    """How the checkpoint is quantized, by its config and description; None: it is not. Raises UserError."""
    found = _read_description(directory, config.quantize)
    if found is None:
        if config.quantize is None:
            return None
        raise UserError(
            f"{directory}/config.json: quantize is {config.quantize!r}, but quant_model_description_{config.quantize}"
            ".json is missing; it says which tensors are quantized. Copy it from the original, or remove quantize "
            "if the weights are floating-point."
        )
    path, description = found
    kinds = {name: kind for name, kind in description.items() if "." in name}
    if config.quantize is None and all(kind == FLOAT for kind in kinds.values()):
        return None
    check_recipe(directory)
    check_description_of_norms(path, description)
    scheme = _scheme(directory, path, config.quantize, description.get("model_quant_type"), kinds)
    wanted = DESCRIPTION_NAMES[scheme]
    for name, kind in kinds.items():
        if kind not in (wanted, FLOAT):
            raise UserError(
                f"{path}: {name} is {kind!r}; with quantize {scheme!r} a tensor is {wanted} or {FLOAT}. Mixed and "
                "other schemes are not supported; quantize the floating-point original with runners/quantize.py."
            )
    linears = tuple(name for name in linear_paths(config) if kinds.get(f"{name}.weight") == wanted)
    known = {f"{linear}.weight" for linear in linears}
    others = [name for name, kind in kinds.items() if kind == wanted and name.endswith(".weight") and name not in known]
    if others:
        raise UserError(f"{path}: {others[0]} is {wanted}, but is no linear layer of this model. Only those may be.")
    split = split_group(linears)
    if split:
        raise UserError(
            f"{path}: of {', '.join(split)} some are {wanted} and some {FLOAT}. Projections of one input are computed "
            "together: quantize all of them, or none."
        )
    return Quantization(scheme, linears, stored=True)


def expected_names(config: GemmaConfig, quantization: Quantization, floats: Mapping[str, tuple[int, ...]]) -> tuple[
    dict[str, tuple[int, ...]], set[str]
]:  # fmt: skip
    """Shapes of the tensors of a quantized checkpoint, and names that may be there besides.

    floats: shapes of the floating-point model's tensors, the head's included where it is quantized.
    """
    shapes = dict(floats)
    optional: set[str] = set()
    static = quantization.scheme == "w8a8"
    for path in quantization.linears:
        sizes = dict(zip("nk", floats[f"{path}.weight"], strict=True))
        for kind in _STATIC if static else _SYMMETRIC:
            shapes[f"{path}.{kind}"] = tuple(sizes.get(size, 1) for size in QUANTIZED_TENSORS[kind][0].split())
        optional |= {f"{path}.weight_scale", f"{path}.weight_offset"} - shapes.keys()
        if static and f"{path}.bias" in shapes:
            del shapes[f"{path}.bias"]  # part of quant_bias
            optional.add(f"{path}.bias")
    return shapes, optional


def check_dtypes(directory: Path, headers: Mapping[str, TensorHeader], quantization: Quantization) -> None:
    """Raise UserError if a tensor of a quantized linear has a dtype that the format does not give it."""
    for path in quantization.linears:
        for kind, (_, legal) in QUANTIZED_TENSORS.items():
            header = headers.get(f"{path}.{kind}")
            if header is not None and header.dtype not in legal:
                raise UserError(
                    f"{directory}: {path}.{kind} has the dtype {header.dtype}, but config.json and the description say "
                    f"that {path} is {DESCRIPTION_NAMES[quantization.scheme or 'w8a8']}: it must be "
                    f"{' or '.join(legal)}. If the weights are floating-point, remove quantize from config.json and "
                    "the description file; otherwise copy all files from the same original."
                )


def check_values(
    directory: Path, quantization: Quantization, present: Mapping[str, object], read: Callable[[str], Tensor]
) -> None:
    """Raise UserError for scales that cannot be right, or that this program does not compute with."""
    for path in quantization.linears:
        if quantization.scheme == "w8a8":
            scale, offset = (read(f"{path}.{kind}").float().item() for kind in ("input_scale", "input_offset"))
            if not 0 < scale < float("inf") or offset != round(offset) or not -128 <= offset <= 127:
                raise UserError(
                    f"{directory}: {path} has input_scale {scale:g} and input_offset {offset:g}; the first must be "
                    "above 0 and the second an integer of int8. Quantize the floating-point original again."
                )
            owner = group_of(path)[0]
            shared = tuple(read(f"{owner}.{kind}").float().item() for kind in ("input_scale", "input_offset"))
            if (scale, offset) != shared:
                raise UserError(
                    f"{directory}: {path} and {owner} have one input, but the input_scale {scale:g} and {shared[0]:g} "
                    f"and the input_offset {offset:g} and {shared[1]:g}. They are computed together and must be equal; "
                    "quantize the floating-point original again."
                )
        for kind in ("deq_scale", "weight_scale"):
            if f"{path}.{kind}" in present:
                _check_scale(directory, f"{path}.{kind}", read)
        if f"{path}.weight_offset" in present and bool(read(f"{path}.weight_offset").any()):
            raise UserError(
                f"{directory}: {path}.weight_offset is not 0: its weights are asymmetric, which is not supported. "
                "Quantize the floating-point original with symmetric weights, such as with runners/quantize.py."
            )


def _check_scale(directory: Path, name: str, read: Callable[[str], Tensor]) -> None:
    """Scales of output channels: a channel without weights may have 0."""
    stored = read(name)
    scale = stored if stored.is_floating_point() else decode_scale(stored)
    legal = torch.isfinite(scale) & (scale >= 0)
    if not bool(legal.all()):
        channel = int(legal.flatten().logical_not().nonzero()[0])
        raise UserError(
            f"{directory}: {name} is {scale.flatten()[channel].item():g} for channel {channel}; scales are finite and "
            "not below 0. The checkpoint is damaged: copy it again, or quantize the floating-point original again."
        )


def check_description(directory: Path, config: GemmaConfig, stored: Collection[str]) -> None:
    """Raise UserError if the description names tensors that the files, which hold `stored`, do not have.

    A tied head may be described: tools describe it as they find it in the model.
    """
    found = _read_description(directory, config.quantize)
    assert found is not None
    path, description = found
    tied = {HEAD} if config.tie_word_embeddings else set()
    absent = [name for name in description if "." in name and name not in stored and name not in tied]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(
            f"{path} describes {absent[0]}{more}, which the weights do not hold. Description and weights must belong "
            "together: copy both again from the same original."
        )


def check_norm_biases(directory: Path, names: Iterable[str], read: Callable[[str], Tensor]) -> set[str]:
    """Which of the stored `names` are biases of norms, that ModelSlim writes. Raises UserError if one is not 0."""
    found = {name for name in names if NORM_BIAS.fullmatch(name)}
    for name in sorted(found):
        if bool(read(name).any()):
            raise UserError(
                f"{directory}: {name} is not 0; Gemma's norms have no bias, and one is not supported. Quantize the "
                "floating-point original without an anti-outlier method that gives norms a bias, such as with "
                "runners/quantize.py."
            )
    return found


def _read_description(directory: Path, quantize: str | None) -> tuple[Path, dict[str, Any]] | None:
    names = [f"quant_model_description_{quantize}.json"] if quantize else []
    found = [directory / name for name in (*names, "quant_model_description.json") if (directory / name).is_file()]
    found = found or sorted(directory.glob("quant_model_description*.json"))
    if not found:
        return None
    path = found[0]
    description = read_json_object(path)
    if not description:
        raise UserError(f"{path} must hold an object that maps tensor names to {FLOAT} or a scheme such as W8A8.")
    return path, description


def _scheme(
    directory: Path, path: Path, quantize: str | None, model_quant_type: object, kinds: Mapping[str, object]
) -> Scheme:
    """The checkpoint's scheme; config.json, model_quant_type and the tensors must agree on it."""
    by_name = {name: scheme for scheme, name in DESCRIPTION_NAMES.items()}
    used = sorted({str(kind) for kind in kinds.values()} - {FLOAT})
    said = quantize if quantize is not None else by_name.get(str(model_quant_type))
    if said is not None and said not in SCHEMES:
        raise UserError(
            f"{directory}/config.json: quantize is {said!r}; supported are {', '.join(SCHEMES)}. Quantize the "
            "floating-point original with runners/quantize.py."
        )
    if used and not by_name.keys() & used:
        raise UserError(
            f"{path}: tensors are {some(used)}; supported is one of {', '.join(by_name)} for all that are quantized. "
            "Quantize the floating-point original again in one of these, or with runners/quantize.py."
        )
    if said is None:
        first = next(by_name[name] for name in used if name in by_name)
        raise UserError(
            f"{directory}/config.json has no quantize, but {path.name} describes quantized tensors. Add "
            f'"quantize": "{first}" to config.json, or remove the description if the weights are floating-point.'
        )
    wanted = DESCRIPTION_NAMES[said]
    if wanted not in used and used:
        raise UserError(
            f"{directory}/config.json: quantize is {said!r}, but {path.name} has tensors of {', '.join(used)} and none "
            f"of {wanted}. Set quantize to what the tensors are."
        )
    return said


def stored_dtype(name: str) -> torch.dtype:
    """The torch dtype of safetensors' name of it."""
    return {**FLOAT_DTYPES, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}[name]
