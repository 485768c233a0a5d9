"""End tokens (eos_token_id) and dtype of a checkpoint, as its files state them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.json_file import read_json_object

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
LARGEST_ID = 1 << 31
_DEFAULT_END = 1  # <eos> of Gemma, where config.json names none


def ends_by_file(directory: Path) -> dict[str, tuple[int, ...]]:
    """The ids that end an answer, by the file that names them: eos_token_id of config.json and generation_config.json.

    An answer ends with any of them, or with the tokenizer's eos_token. vLLM takes the tokenizer's and those of
    generation_config.json, or of config.json where that is not there, as transformers' generate does; fine-tunes name
    more ends in the one file, not fewer.
    """
    ends = {
        CONFIG: token_ids(read_json_object(directory / CONFIG).get("eos_token_id", _DEFAULT_END), directory / CONFIG)
    }
    path = directory / GENERATION_CONFIG
    if path.is_file():
        ends[path.name] = token_ids(read_json_object(path).get("eos_token_id"), path)
    return ends


def token_ids(value: Any, source: Path | str, name: str = "eos_token_id") -> tuple[int, ...]:
    """The ids in a field of config.json or generation_config.json. Raises UserError."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < LARGEST_ID for i in ids):
        raise UserError(f"{source}: {name} is {shown(value)}; it must be an id, a list of ids or null.")
    return tuple(ids)


def stated_dtype(directory: Path) -> tuple[str | None, str]:
    """The dtype that a checkpoint is to be computed in, and where that is said; None: nowhere.

    transformers 4 writes torch_dtype into config.json, transformers 5 dtype. Without either it is the dtype
    of the first floating-point tensor of the first file, as transformers takes it.
    """
    raw = read_json_object(directory / CONFIG)
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value:
        return value, CONFIG
    for path in sorted(directory.glob("*.safetensors"))[:1]:
        found = _first_dtype(path)
        if found is not None:
            return found, f"the weights', as {CONFIG} states none"
    return None, ""


def _first_dtype(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            dtypes = (file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 - not a mapping
            return next((_SAFETENSORS_DTYPES[dtype] for dtype in dtypes if dtype in _SAFETENSORS_DTYPES), None)
    except (SafetensorError, OSError, ValueError):
        return None  # opening the weights says what is wrong with them
