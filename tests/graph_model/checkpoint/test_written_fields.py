"""The tables of docs/checkpoints.md: our columns are what is written, and the real ModelSlim's are what is read.

tests/real_modelslim.py compares all of them with what the real tool writes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoint_fields import COLUMNS, DTYPES, SCHEMES, both_dtypes, column_of_page, read_fields
from support.checkpoints import write_random_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint

CONFIG = TINY_CONFIGS["one_kv_head"]


@pytest.mark.parametrize("dialect", ["vllm_ascend", "atb"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_says_what_we_write(scheme: str, dialect: str, tmp_path: Path) -> None:
    written = {}
    for dtype in DTYPES:
        config = replace(CONFIG, dtype=dtype)
        write_random_checkpoint(tmp_path / dtype, config)
        quantization = Quantization(scheme, select_linears(config, ["lm_head"]), stored=True)  # type: ignore[arg-type]
        options = QuantizerOptions(quantization, smooth=False, method="minmax", dialect=dialect)  # type: ignore[arg-type]
        quantize_checkpoint(tmp_path / dtype, tmp_path / f"{dtype}-new", options, [[2, 5, 7, 9]])
        written[dtype] = read_fields(tmp_path / f"{dtype}-new")
    fields = {field: value for field, value in both_dtypes(written).items() if value != "none"}
    assert fields == column_of_page(scheme, f"`format={dialect}`")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_dtype_on_the_page_is_read(scheme: str, column: str) -> None:
    cells = column_of_page(scheme, column)
    tensors = find_scheme(scheme).tensors
    assert {f"`{kind}`" for kind, tensor in tensors.items() if tensor.required} <= cells.keys()
    for kind, tensor in tensors.items():
        cell = cells.get(f"`{kind}`", "").replace("the model's", " ".join(DTYPES.values()))
        stored = {word.strip(",") for word in cell.split() if not word.startswith("(")}
        assert stored <= set(tensor.dtypes), kind
