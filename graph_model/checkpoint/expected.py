"""Check a checkpoint's tensors against its config: names, shapes and dtypes that a GemmaConfig asks for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import Family, family_of
from graph_gemma.graph_model.foreign import foreign_advice, some

EMBEDDING = Family.embedding
HEAD = f"{Family.head_path}.weight"

# safetensors' names of the dtypes that weights may have.
FLOAT_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

# Tables that old versions of transformers saved; they follow from the config.
_HARMLESS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")


@dataclass(frozen=True)
class TensorHeader:
    """Shape and dtype of a tensor, from a file's header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it: F16, BF16, I8, ...


def expected_tensors(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of `config` needs; a tied head is left out."""
    return dict(family_of(config).tensors)


def check_tensors(
    found: Mapping[str, TensorHeader],
    config: GemmaConfig,
    directory: Path,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    optional: Iterable[str] = (),
) -> list[str]:
    """The names to load, in the model's order.

    expected: shapes of the tensors, where they are others than the floating-point model's; their dtypes are then
    checked elsewhere. optional: names that may be there besides.
    Raises UserError for tensors that are missing, unexpected, or of a wrong shape or dtype. What `harmless` names is
    let through, but not among the names; of the other parts of a multimodal checkpoint a warning is given.
    """
    float_names = expected_tensors(config)
    expected = float_names if expected is None else expected
    optional = {*optional, *([HEAD] if config.tie_word_embeddings else [])}
    unused = [name for name in found if _of_another_part(name, config)]
    if unused:
        warnings.warn(
            f"{directory}: the text model alone is loaded; {len(unused)} tensors of {_parts(unused)} are not used, and "
            "no prompt can hold an image.",
            stacklevel=2,
        )
    missing = [name for name in expected if name not in found]
    unexpected = [
        name
        for name in found
        if name not in expected
        and name not in optional
        and not _HARMLESS.fullmatch(name)
        and not _of_another_part(name, config)
    ]
    if missing or unexpected:
        raise UserError(_names_message(directory, len(expected), missing, unexpected, found))
    wrong = [name for name, shape in expected.items() if found[name].shape != shape]
    if wrong:
        name = wrong[0]
        others = f" ({len(wrong)} tensors in all have a wrong shape)" if len(wrong) > 1 else ""
        resized = set(wrong) <= {EMBEDDING, HEAD} and found[name].shape[1:] == expected[name][1:]
        advice = f" If tokens were added, set vocab_size to {found[name].shape[0]} in config.json." if resized else ""
        raise UserError(
            f"{directory}: {name} has the shape {list(found[name].shape)}, but config.json asks for "
            f"{list(expected[name])}{others}. Config and weights must belong together: copy both from the "
            f"same original.{advice}"
        )
    if expected is float_names:
        check_float_dtypes(directory, found, expected)
    return list(expected)


def harmless(name: str, config: GemmaConfig) -> bool:
    """Whether a stored tensor may be there that the model does not read.

    These are rotary tables, the head of a tied model, and the other parts of a multimodal checkpoint.
    """
    tied_head = config.tie_word_embeddings and f".{name}".endswith(f".{HEAD}")
    return tied_head or _HARMLESS.fullmatch(name) is not None or _of_another_part(name, config)


def _of_another_part(name: str, config: GemmaConfig) -> bool:
    parts = family_of(config).other_parts
    return name.removeprefix("model.").startswith(tuple(f"{part}." for part in parts))


def _parts(names: Iterable[str]) -> str:
    return " and ".join(sorted({name.removeprefix("model.").partition(".")[0] for name in names}))


def plain_names(stored: Iterable[str]) -> dict[str, str]:
    """The model's names of `stored` tensors, where these have another prefix than "model." and "" (of the head).

    Wrappers put one before all names (torch.compile _orig_mod., DDP module., PEFT base_model.model.); a checkpoint of
    the model without its head has none. The embedding's name tells which.
    """
    embedding, head = EMBEDDING.removeprefix("model."), f".{HEAD}"
    prefixes = {name.removesuffix(embedding) for name in stored if name.endswith(embedding)}
    if len(prefixes) != 1 or (prefix := prefixes.pop()) == "model." or (prefix and not prefix.endswith(".")):
        return {}
    renamed = {name: f"model.{name.removeprefix(prefix)}" for name in stored if name.startswith(prefix)}
    renamed |= {name: HEAD for name in stored if name.endswith(head) and prefix.startswith(name.removesuffix(HEAD))}
    return {name: plain for name, plain in renamed.items() if name != plain}


def check_float_dtypes(directory: Path, found: Mapping[str, TensorHeader], names: Iterable[str]) -> None:
    """Raise UserError if one of the tensors is not floating-point."""
    for name in names:
        dtype = found[name].dtype
        if dtype == "I8" and _is_modelslim(found):
            raise UserError(
                f"{directory}: {name} has the dtype I8, but config.json and the quant_model_description file do not "
                'say that it is quantized. Add "quantize" with the scheme (such as "w8a8") to config.json and copy the '
                "description file from the original."
            )
        if dtype not in FLOAT_DTYPES and (advice := _foreign_advice(found)):
            raise UserError(f"{directory}: {name} has the dtype {dtype}. {advice}")
        if dtype not in FLOAT_DTYPES:
            raise UserError(
                f"{directory}: {name} has the dtype {dtype}; weights must be one of "
                f"{', '.join(FLOAT_DTYPES)}. Convert the checkpoint to one of these."
            )


def head_differs_message(directory: Path) -> str:
    """The message about a tied model whose head is not its embedding."""
    return (
        f"{directory}: config.json ties the head to the embedding (tie_word_embeddings is true or absent), but {HEAD} "
        f"differs from {EMBEDDING}. If the head was trained apart, set tie_word_embeddings to false in config.json."
    )


def _is_modelslim(found: Iterable[str]) -> bool:
    return any(name.endswith((".deq_scale", ".weight_offset")) for name in found)


def _foreign_advice(found: Mapping[str, TensorHeader]) -> str | None:
    return None if _is_modelslim(found) else foreign_advice({name: header.dtype for name, header in found.items()})


def _names_message(
    directory: Path, total: int, missing: list[str], unexpected: list[str], found: Mapping[str, TensorHeader]
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the model's {total} tensors are missing: {some(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors are not part of this model: {some(unexpected)}")
    advice = _foreign_advice(found)
    if missing == [HEAD] and not unexpected:
        advice = (
            "config.json says that the head is not the embedding (tie_word_embeddings is false), and the files hold "
            "none. If the head was not trained, set tie_word_embeddings to true; otherwise copy the weights again."
        )
    advice = advice or (
        "The weights must be those of a model with the sizes in config.json. Copy config and weights again "
        "from the same original."
    )
    return f"{directory}: {'; '.join(parts)}. {advice}"
