"""Absurd and hostile checkpoints: huge sizes, long values and names, control characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.foreign_checkpoints import assert_reads, refusal, rewrite, set_config, weights_of

from graph_gemma.graph_model.errors import LONGEST_MESSAGE


@pytest.mark.parametrize(
    "field",
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "max_position_embeddings"],
)
def test_absurd_sizes_are_refused_before_anything_is_built(field: str, directory: Path) -> None:
    set_config(directory, **{field: 10**12})
    assert f"{field} is 1000000000000; no Gemma is that large" in refusal(directory)


def test_a_number_of_thousands_of_digits_is_no_json(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "gemma", "x": ' + "1" * 5000 + "}")
    assert "config.json is not valid JSON" in refusal(directory)


def test_a_config_of_many_megabytes_is_not_parsed(directory: Path) -> None:
    (directory / "config.json").write_text(" " * (17 << 20))
    assert "larger than 16 MB" in refusal(directory)


def test_a_byte_order_mark_is_skipped(directory: Path) -> None:
    path = directory / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_reads(directory, weights_of(directory))


def test_long_values_are_cut_and_the_way_out_kept(directory: Path) -> None:
    set_config(directory, hidden_act="x" * 1_000_000)
    message = refusal(directory)
    assert len(message) < LONGEST_MESSAGE + 100
    assert message.endswith("mean the same).")


@pytest.mark.parametrize("value", ["a" * 5000, "a/b", "../x", "", ["w8a8"], 8, "\u202e"])
def test_quantize_must_be_a_name(value: Any, directory: Path) -> None:
    set_config(directory, quantize=value)
    assert "it must be a scheme's name" in refusal(directory)


@pytest.mark.parametrize("name", ["a" * 5000, "\U0001f600" * 100, "\ud800"])
def test_file_names_that_no_system_has_are_refused(name: str, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"a": f"{name}.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refusal(directory)


def test_control_sequences_in_names_are_escaped(directory: Path) -> None:
    name = "\x1b]0;pwned\x07\x1b[31mred\u202e\x9b"
    rewrite(directory, lambda w: w.update({name: torch.zeros(1)}))
    message = refusal(directory)
    assert r"\x1b]0;pwned\x07\x1b[31mred\u202e\x9b" in message
    assert message.isprintable()
