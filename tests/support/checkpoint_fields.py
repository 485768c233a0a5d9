"""Files, entries and dtypes of quantized checkpoints as a table in Markdown: the one that docs/checkpoints.md holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "checkpoints.md"
SCHEMES = ("w8a8", "w8a8_dynamic", "w8a16")
DTYPES = {"bfloat16": "BF16", "float16": "F16"}  # of models; by safetensors' names
COLUMNS = ("26.1.0, newer", "26.1.0, older", "`format=vllm_ascend`", "`format=atb`")
_LINEAR = "model.layers.0.self_attn.q_proj"
_NONE = "none"

Fields = dict[str, str]


def read_fields(directory: Path) -> Fields:
    """What a checkpoint's files are called, what its description says, and the dtypes of a linear's tensors."""
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
    [description_path] = directory.glob("quant_model_description*.json")
    description = json.loads(description_path.read_text())
    entries = [name for name in description if "." not in name and name != "model_quant_type"]
    found = {
        "weights": " ".join(weights),
        "index": " ".join(path.name for path in directory.glob("*.index.json")),
        "description": description_path.name,
        "`model_quant_type`": description.get("model_quant_type", ""),
        "other entries": " ".join(sorted(entries)),
        "`quantize` in config.json": json.loads((directory / "config.json").read_text()).get("quantize", ""),
        "recipe": " ".join(path.name for path in directory.glob("*_best_practice.yaml")),
    }
    with safe_open(directory / weights[0], "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if match := re.fullmatch(rf"{re.escape(_LINEAR)}\.(\w+)", name):
                found[f"`{match[1]}`"] = file.get_slice(name).get_dtype()
    return {field: value or _NONE for field, value in found.items()}


def both_dtypes(by_dtype: Mapping[str, Fields]) -> Fields:
    """One column of the fields of a bfloat16 and of a float16 checkpoint."""
    cells = {}
    for field in {field: None for fields in by_dtype.values() for field in fields}:
        values = {dtype: fields.get(field, _NONE) for dtype, fields in by_dtype.items()}
        if len(set(values.values())) == 1:
            cells[field] = next(iter(values.values()))
        elif all(value == DTYPES[dtype] for dtype, value in values.items()):
            cells[field] = "the model's"
        else:
            cells[field] = ", ".join(f"{value} ({dtype})" for dtype, value in values.items())
    return cells


def render(scheme: str, columns: Mapping[str, Fields]) -> list[str]:
    """The lines of a scheme's table."""
    fields = {field: None for cells in columns.values() for field in cells}
    rows = [f"| {' | '.join(['quant=' + scheme, *columns])} |", "|---" * (1 + len(columns)) + "|"]
    for field in fields:
        rows.append(f"| {' | '.join([field, *(cells.get(field, _NONE) for cells in columns.values())])} |")
    return rows


def tables_of_page() -> dict[str, list[str]]:
    """The lines of each scheme's table in docs/checkpoints.md."""
    found: dict[str, list[str]] = {}
    scheme = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| quant=(\w+) \|", line):
            scheme = match[1]
        elif not line.startswith("|"):
            scheme = None
        if scheme is not None:
            found.setdefault(scheme, []).append(line)
    return found


def column_of_page(scheme: str, column: str) -> Fields:
    """The cells of a column of docs/checkpoints.md, by field, without what the column's files do not have."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables_of_page()[scheme]]
    place = rows[0].index(column)
    return {row[0]: row[place] for row in rows[2:] if row[place] != _NONE}
