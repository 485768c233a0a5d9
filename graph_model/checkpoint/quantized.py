"""Check quantized checkpoints in ModelSlim's layout: their description file and their tensors.

Next to weights and config.json ("quantize": scheme) lies quant_model_description_<scheme>.json, or
quant_model_description.json: an object that maps each tensor's name to its scheme or FLOAT. The tensors of a quantized
linear, their shapes and dtypes: `graph_model.quantization`, a file for each scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint.anti_outlier import NORM_BIAS, check_description_of_norms, check_recipe
from graph_gemma.graph_model.checkpoint.expected import FLOAT_DTYPES, HEAD, TensorHeader
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.foreign import some
from graph_gemma.graph_model.json_file import read_json_object
from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization, linear_paths, split_group
from graph_gemma.graph_model.quantization.scheme import Scheme, check_scale
from graph_gemma.graph_model.quantization.schemes import find_scheme, scheme_of

FLOAT = "FLOAT"
_MODELSLIM_NAMES = {name: find_scheme(name).modelslim for name in SCHEMES}


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
    wanted = _MODELSLIM_NAMES[scheme]
    for name, kind in kinds.items():
        if kind not in (wanted, FLOAT):
            raise UserError(
                f"{path}: {name} is {kind!r}; with quantize {scheme!r} a tensor is {wanted} or {FLOAT}. Mixed and "
                "other schemes are not supported; quantize the floating-point original with graph-gemma quantize."
            )
    linears = tuple(name for name in linear_paths(config) if kinds.get(f"{name}.weight") == wanted)
    known = {f"{linear}.weight" for linear in linears}
    others = [name for name, kind in kinds.items() if kind == wanted and name.endswith(".weight") and name not in known]
    if others:
        raise UserError(f"{path}: {others[0]} is {wanted}, but is no linear layer of this model. Only those may be.")
    split = split_group(config, linears)
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
    scheme = _scheme_of(quantization)
    for path in quantization.linears:
        sizes = dict(zip("nk", floats[f"{path}.weight"], strict=True))
        for kind, tensor in scheme.tensors.items():
            if tensor.required:
                shapes[f"{path}.{kind}"] = tuple(sizes.get(size, 1) for size in tensor.sizes.split())
            else:
                optional.add(f"{path}.{kind}")
        if scheme.holds_bias and f"{path}.bias" in shapes:
            del shapes[f"{path}.bias"]
            optional.add(f"{path}.bias")
    return shapes, optional


def check_dtypes(directory: Path, headers: Mapping[str, TensorHeader], quantization: Quantization) -> None:
    """Raise UserError if a tensor of a quantized linear has a dtype that the format does not give it."""
    scheme = _scheme_of(quantization)
    for path in quantization.linears:
        for kind, tensor in scheme.tensors.items():
            header = headers.get(f"{path}.{kind}")
            if header is not None and header.dtype not in tensor.dtypes:
                raise UserError(
                    f"{directory}: {path}.{kind} has the dtype {header.dtype}, but config.json and the description say "
                    f"that {path} is {scheme.modelslim}: it must be {' or '.join(tensor.dtypes)}. If the weights are "
                    "floating-point, remove quantize from config.json and the description file; otherwise copy all "
                    "files from the same original."
                )


def check_values(
    directory: Path,
    config: GemmaConfig,
    quantization: Quantization,
    present: Mapping[str, object],
    read: Callable[[str], Tensor],
) -> None:
    """Raise UserError for scales that cannot be right, or that this program does not compute with."""
    scheme = _scheme_of(quantization)
    for path in quantization.linears:
        scheme.check_input(directory, path, family_of(config).group_of(path).paths[0], read)
        for kind in ("deq_scale", "weight_scale"):
            if f"{path}.{kind}" in present:
                check_scale(directory, f"{path}.{kind}", read)
        if f"{path}.weight_offset" in present and bool(read(f"{path}.weight_offset").any()):
            raise UserError(
                f"{directory}: {path}.weight_offset is not 0: its weights are asymmetric, which is not supported. "
                "Quantize the floating-point original with symmetric weights, such as with graph-gemma quantize."
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
                "graph-gemma quantize."
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
        raise UserError(f"{path} must have entries that map tensor names to {FLOAT} or a scheme such as W8A8.")
    return path, description


def _scheme(
    directory: Path, path: Path, quantize: str | None, model_quant_type: object, kinds: Mapping[str, object]
) -> str:
    """The name of the checkpoint's scheme; config.json, model_quant_type and the tensors must agree on it."""
    by_name = {name: scheme for scheme, name in _MODELSLIM_NAMES.items()}
    used = sorted({str(kind) for kind in kinds.values()} - {FLOAT})
    said = quantize if quantize is not None else by_name.get(str(model_quant_type))
    if said is not None and said not in SCHEMES:
        raise UserError(
            f"{directory}/config.json: quantize is {said!r}; supported are {', '.join(SCHEMES)}. Quantize the "
            "floating-point original with graph-gemma quantize."
        )
    if used and not by_name.keys() & used:
        raise UserError(
            f"{path}: tensors are {some(used)}; supported is one of {', '.join(by_name)} for all that are quantized. "
            "Quantize the floating-point original again in one of these, or with graph-gemma quantize."
        )
    if said is None:
        first = next(by_name[name] for name in used if name in by_name)
        raise UserError(
            f"{directory}/config.json has no quantize, but {path.name} describes quantized tensors. Add "
            f'"quantize": "{first}" to config.json, or remove the description if the weights are floating-point.'
        )
    wanted = _MODELSLIM_NAMES[said]
    if wanted not in used and used:
        raise UserError(
            f"{directory}/config.json: quantize is {said!r}, but {path.name} has tensors of {', '.join(used)} and none "
            f"of {wanted}. Set quantize to what the tensors are."
        )
    return said


def _scheme_of(quantization: Quantization) -> Scheme:
    scheme = scheme_of(quantization)
    assert scheme is not None
    return scheme


def stored_dtype(name: str) -> torch.dtype:
    """The torch dtype of safetensors' name of it."""
    return {**FLOAT_DTYPES, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}[name]
