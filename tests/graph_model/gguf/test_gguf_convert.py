"""GGUF files of Gemma 1, 2 and 3 become checkpoints: each tensor as the package gguf dequantizes it, each field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

import gguf
from support.gguf_files import BF16, CONFIGS, F16, F32, model_fields, small, write_gguf

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config import NAMED_CONFIGS, Gemma2Config, Gemma3Config
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.gguf import config as gguf_config
from graph_gemma.graph_model.gguf import convert_gguf
from graph_gemma.graph_model.gguf.header import Header, TensorPlace, read_header
from graph_gemma.runners.backends.transformers_import import import_transformers

TYPES = gguf.GGMLQuantizationType


def dequantized(kind: Any) -> bool:
    try:
        gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except (KeyError, NotImplementedError):
        return False
    return True


ALL_TYPES = [kind for kind in TYPES if dequantized(kind)]


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.names}


def assert_same(found: dict[str, torch.Tensor], written: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    assert list(found) == list(written)
    for name, values in written.items():
        assert torch.equal(found[name], torch.from_numpy(values).to(dtype)), name


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_config_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    mixed = {"ffn_down": TYPES.Q4_0, "attn_q": BF16, "attn_v": TYPES.Q8_0, "token_embd": F16, "ffn_up": TYPES.Q6_K}
    written = write_gguf(tmp_path / "m.gguf", CONFIGS[name], lambda s: mixed.get(s.split(".")[-2], F32))

    lines: list[str] = []
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c", report=lines.append)

    assert_same(read_all(tmp_path / "c"), written)
    assert read_config(tmp_path / "c") == CONFIGS[name]
    assert any("3 Q4_0" in line or "7 Q4_0" in line for line in lines)


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
def test_every_type_of_block_that_the_package_reads(kind: Any, tmp_path: Path) -> None:
    config = CONFIGS["gemma"].of_layers([0])
    written = write_gguf(tmp_path / "m.gguf", config, lambda stored: kind)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c")
    assert_same(read_all(tmp_path / "c"), written)


def test_the_types_that_llama_cpp_writes_are_among_them() -> None:
    names = {kind.name for kind in ALL_TYPES}
    assert {"F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"} <= names


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once(dtype: str, tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf", CONFIGS["gemma2"], lambda stored: TYPES.Q4_K)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c", dtype=dtype)
    assert_same(read_all(tmp_path / "c"), written, getattr(torch, dtype))
    assert read_config(tmp_path / "c").dtype == dtype


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_logits_are_those_of_transformers_own_reader(name: str, tmp_path: Path) -> None:
    """Of what its reader takes from the file; transformers does not read Gemma 1."""
    transformers = import_transformers()
    config = CONFIGS[name]
    write_gguf(tmp_path / "m.gguf", config, lambda stored: TYPES.Q8_0)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c")
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    except (TypeError, ValueError, ImportError) as error:
        pytest.skip(f"this transformers reads no {name} from GGUF: {error}")
    theirs.set_attn_implementation("eager")
    ids = torch.arange(40) * 7 % config.vocab_size
    with torch.no_grad():
        expected = theirs(ids[None]).logits
        model = family_of(read_config(tmp_path / "c")).model()
        weights = read_all(tmp_path / "c")
        model.load_state_dict(weights, strict=False)
        logits = model(ids[None], torch.arange(40)[None])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_shards_hold_what_one_file_would(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf", CONFIGS["gemma"])
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c", max_shard_bytes=300_000)
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 3
    assert_same(read_all(tmp_path / "c"), written)


def test_the_header_is_what_the_package_reads(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "m.gguf", CONFIGS["gemma3"], fields={"general.alignment": 64, "x.numbers": [1, 2], "x.f": 0.1}
    )
    header, theirs = read_header(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    expected = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert header.fields == expected
    places = {t.name: ([*reversed(t.shape.tolist())], t.tensor_type, t.data_offset) for t in theirs.tensors}
    assert {n: ([*p.shape], p.block_type, p.offset) for n, p in header.tensors.items()} == places


def header_of(config: Any, **fields: Any) -> Header:
    """What llama.cpp's converter would state of a named size, without weights."""
    architecture = config.model_type.removesuffix("_text")
    stated = {**model_fields(config, architecture), **{f"{architecture}.{k}": v for k, v in fields.items()}}
    places = {"token_embd.weight": TensorPlace((config.vocab_size, config.hidden_size), 0, 0)}
    floats = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in stated.items() if v is not None}
    return Header(Path("m.gguf"), {"general.architecture": architecture, **floats}, places, 0)


@pytest.mark.parametrize("name", NAMED_CONFIGS)
def test_the_config_of_every_named_size_follows_from_its_file(name: str) -> None:
    config = NAMED_CONFIGS[name]
    assert gguf_config.read_config(header_of(config), "bfloat16") == config


def test_decimals_are_what_the_float32_was_made_from() -> None:
    config = replace(CONFIGS["gemma3"], rms_norm_eps=1e-6, rope_theta=123456.7)
    read = gguf_config.read_config(header_of(config), "float32")
    assert (read.rms_norm_eps, read.rope_theta) == (1e-6, 123456.7)


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_scale_of_a_27b_follows_from_its_layers(name: str, layers: int) -> None:
    """Of all shapes, as llama.cpp asks for nothing else."""
    for count, scalar in ((layers - 1, 256), (layers, 256 // 2), (layers + 1, 256)):
        named = replace(CONFIGS[name], num_hidden_layers=count)
        assert gguf_config.read_config(header_of(named), "float32").query_pre_attn_scalar == scalar  # type: ignore[attr-defined]


def test_what_newer_files_state_is_taken() -> None:
    fields = {"rope.freq_base_swa": 500.0, "attention.sliding_window_pattern": 3}
    config = gguf_config.read_config(header_of(CONFIGS["gemma3"], **fields), "float32")
    assert isinstance(config, Gemma3Config)
    assert (config.rope_local_base_freq, config.layer_types[2]) == (500.0, "full_attention")
    listed = [True, False, True, True, True, False, True]
    config = gguf_config.read_config(
        header_of(CONFIGS["gemma3"], **{"attention.sliding_window_pattern": listed}), "float32"
    )
    assert [kind == "sliding_attention" for kind in config.layer_types] == listed  # type: ignore[attr-defined]


def test_a_factor_without_a_type_is_linear_scaling() -> None:
    scaled = {"rope.scaling.type": None, "rope.scaling.factor": 8.0}
    config = gguf_config.read_config(header_of(CONFIGS["gemma3"], **scaled), "float32")
    assert config.rope_factor == 8.0  # type: ignore[attr-defined]


def test_a_file_without_a_window() -> None:
    """llama.cpp: Gemma 2 has its window of 4096, and Gemma 3 full layers only."""
    absent = {"attention.sliding_window": None}
    second, third = (gguf_config.read_config(header_of(CONFIGS[n], **absent), "float32") for n in ("gemma2", "gemma3"))
    assert isinstance(second, Gemma2Config)
    assert (second.sliding_window, second.layer_types) == (4096, CONFIGS["gemma2"].layer_types)  # type: ignore[attr-defined]
    assert set(third.layer_types) == {"full_attention"}  # type: ignore[attr-defined]


def test_an_untied_head_is_taken(tmp_path: Path) -> None:
    config = replace(small(CONFIGS["gemma3"]), tie_word_embeddings=False)
    written = write_gguf(tmp_path / "m.gguf", config)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c")
    assert_same(read_all(tmp_path / "c"), written)
    assert not read_config(tmp_path / "c").tie_word_embeddings


def test_ends_of_answers(tmp_path: Path) -> None:
    """A model with a chat template ends with <end_of_turn>, too."""
    config = small(CONFIGS["gemma3"])
    chat = {"tokenizer.chat_template": "{{ messages[0].content }}"}
    for number, (fields, ends) in enumerate([({}, (1,)), (chat, (1, 5)), ({"tokenizer.ggml.eot_token_id": 4}, (1, 4))]):
        write_gguf(tmp_path / f"{number}.gguf", config, fields=fields)
        convert_gguf(tmp_path / f"{number}.gguf", tmp_path / f"{number}")
        assert read_config(tmp_path / f"{number}").eos_token_ids == ends
