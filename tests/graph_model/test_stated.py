"""Where answers end and what dtype a checkpoint has, from config.json and the files next to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.stated import ends_by_file, stated_dtype

RAW = TINY_CONFIGS["wide_heads"].to_json()


def write(folder: Path, eos: Any, generation: Any = None, drop: tuple[str, ...] = ()) -> Path:
    raw = {name: value for name, value in RAW.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps({**raw, "eos_token_id": eos}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("eos", "generation", "ends"),
    [
        (1, None, (1,)),
        (1, {"eos_token_id": [1, 107]}, (1, 107)),
        ([1, 5], {"eos_token_id": 107}, (1, 5, 107)),
        (None, {"eos_token_id": 107}, (107,)),
        (1, {"temperature": 0.5}, (1,)),
    ],
)
def test_answers_end_where_either_file_says(eos: Any, generation: Any, ends: tuple[int, ...], tmp_path: Path) -> None:
    assert read_config(write(tmp_path, eos, generation)).eos_token_ids == ends


def test_the_file_that_names_an_end_is_known(tmp_path: Path) -> None:
    found = ends_by_file(write(tmp_path, 1, {"eos_token_id": [1, 107]}))
    assert found == {"config.json": (1,), "generation_config.json": (1, 107)}


@pytest.mark.parametrize("generation", [{"eos_token_id": "x"}, [1], {"eos_token_id": [True]}])
def test_a_damaged_generation_config_is_refused(generation: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json"):
        read_config(write(tmp_path, 1, generation))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_dtype_that_is_not_stated_is_that_of_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    write(tmp_path, 1, drop=("torch_dtype",))
    save_file({"a": torch.zeros(2, dtype=torch.int8), "b": torch.zeros(2, dtype=dtype)}, tmp_path / "model.safetensors")
    assert f"torch.{read_config(tmp_path).dtype}" == str(dtype)
    assert "weights" in stated_dtype(tmp_path)[1]


def test_a_dtype_that_is_stated_counts(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(2, dtype=torch.float16)}, tmp_path / "model.safetensors")
    assert read_config(write(tmp_path, 1)).dtype == "float32"
    assert stated_dtype(tmp_path) == ("float32", "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert read_config(write(tmp_path, 1, drop=("torch_dtype",))).dtype == "float32"
