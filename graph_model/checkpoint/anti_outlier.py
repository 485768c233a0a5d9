"""Refuse checkpoints of ModelSlim's anti-outlier methods, which break a Gemma.

They smooth or rotate what a norm writes, and take the norm for w * n. Gemma's is (1 + w) * n, so that the weights after
it no longer undo what was done to it. Read in msmodelslim 26.1.0: the newer generation leaves its recipe as
<model>_best_practice.yaml next to the weights; the older one writes a smoothed norm twice, as NORM.weight (FLOAT) and
as NORM.module.weight (labelled with the scheme), each with a bias.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError

# Steps of a recipe that change norms or what they write; others (linear_quant, group, load, saver) do not.
_STEPS = (
    *("smooth_quant", "iter_smooth", "flex_smooth_quant", "flex_awq_ssz", "awq", "kv_smooth"),
    *("quarot", "online_quarot", "adapt_rotation", "flatquant", "svd_res"),
)
_STEP = re.compile(r"""\btype['"]?\s*:\s*['"]?(\w+)""")
_LARGEST_RECIPE = 1 << 20
_WRAPPED_NORM = re.compile(r"(?P<norm>model\.(?:.*_layernorm|norm))\.module\.weight")
NORM_BIAS = re.compile(r"model\.(.*_layernorm|norm)(\.module)?\.bias")
_REASON = (
    "ModelSlim takes a norm for w * n, and Gemma's is (1 + w) * n: what it smooths or rotates computes another model. "
    "Quantize the floating-point original again, with graph-gemma quantize (which smooths Gemma's norms as they are), "
    "or with ModelSlim and no anti-outlier step."
)


def check_recipe(directory: Path) -> None:
    """Raise UserError if a recipe next to the weights has a step that smooths or rotates."""
    for path in sorted(directory.glob("*_best_practice.yaml")):
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_RECIPE).decode("utf-8", "replace")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}). Check the file and its permissions.") from None
        if steps := [step for step in _STEPS if step in _STEP.findall(text)]:
            raise UserError(f"{path}: the weights were quantized with {' and '.join(steps)}. {_REASON}")


def check_description_of_norms(path: Path, description: Mapping[str, Any]) -> None:
    """Raise UserError if a description names a smoothed norm, or rotations."""
    for name in description:
        if match := _WRAPPED_NORM.fullmatch(name):
            _check_once(str(path), match, description)
        if name.endswith((".div.mul_scale", ".div.weight")):
            raise UserError(f"{path}: {name} says that the input of a linear layer was smoothed. {_REASON}")
    metadata = description.get("metadata")
    if isinstance(metadata, dict) and metadata.get("quarot"):
        raise UserError(f"{path}: metadata says that the model was rotated (quarot). {_REASON}")


def wrapped_norms(directory: Path, stored: Collection[str]) -> dict[str, str]:
    """The stored names of norms' weights that the files hold as NORM.module.weight only, by the model's names.

    Raises UserError if a norm has both forms.
    """
    found = {}
    for name in stored:
        if match := _WRAPPED_NORM.fullmatch(name):
            _check_once(str(directory), match, stored)
            found[f"{match['norm']}.weight"] = name
    return found


def _check_once(source: str, match: re.Match[str], names: Collection[str]) -> None:
    plain = f"{match['norm']}.weight"
    if plain in names:
        raise UserError(
            f"{source}: both {plain} and {match[0]} are there, as ModelSlim's anti-outlier methods write a norm that "
            f"they smoothed. {_REASON}"
        )
