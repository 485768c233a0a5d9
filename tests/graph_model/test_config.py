"""Reading config.json: both generations of transformers, every refusal, and what we write ourselves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.config import DTYPES, GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.config_file import from_json, read_config
from graph_gemma.graph_model.errors import UserError

# As transformers 4 wrote the checkpoints of Gemma.
TRANSFORMERS_4: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}


def written_by_transformers_5() -> dict[str, Any]:
    gone = {"torch_dtype", "rope_theta", "rope_scaling", "hidden_act"}
    fields = {name: value for name, value in TRANSFORMERS_4.items() if name not in gone}
    return {
        **fields,
        "dtype": "bfloat16",
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
    }


def read(raw: dict[str, Any]) -> GemmaConfig:
    return from_json(raw, source="DIR/config.json")


def test_transformers_4_style_is_gemma_2b() -> None:
    assert read(TRANSFORMERS_4) == GEMMA_2B


def test_transformers_5_style_is_gemma_2b() -> None:
    assert read(written_by_transformers_5()) == GEMMA_2B


def test_fields_that_a_file_leaves_out_are_those_of_gemma_7b() -> None:
    assert read({"model_type": "gemma", "torch_dtype": "bfloat16"}) == GEMMA_7B
    assert (GEMMA_7B.num_attention_heads * GEMMA_7B.head_dim, GEMMA_7B.hidden_size) == (4096, 3072)


def test_rope_theta_is_read_from_rope_parameters_first() -> None:
    assert read({**TRANSFORMERS_4, "rope_theta": 500}).rope_theta == 500.0
    five = {**written_by_transformers_5(), "rope_parameters": {"rope_theta": 250.0, "rope_type": "default"}}
    assert read(five).rope_theta == 250.0
    assert read({**five, "rope_theta": 7.0}).rope_theta == 250.0


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_read_from_either_name(field: str, dtype: str) -> None:
    assert read({"model_type": "gemma", field: dtype}).dtype == dtype


def test_without_a_dtype_weights_are_float32() -> None:
    assert read({"model_type": "gemma"}).dtype == "float32"
    assert read({"model_type": "gemma", "torch_dtype": None}).dtype == "float32"


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_gelu_means_the_tanh_form(activation: str) -> None:
    assert read({**TRANSFORMERS_4, "hidden_act": activation, "hidden_activation": None}) == GEMMA_2B
    assert read({**TRANSFORMERS_4, "hidden_activation": activation}) == GEMMA_2B


@pytest.mark.parametrize(("value", "ids"), [(1, (1,)), ([1, 107], (1, 107)), (None, ()), ([], ())])
def test_end_of_sequence_may_be_one_id_several_or_none(value: object, ids: tuple[int, ...]) -> None:
    assert read({**TRANSFORMERS_4, "eos_token_id": value}).eos_token_ids == ids


@pytest.mark.parametrize("value", [None, 0, 2])
def test_beginning_of_sequence_may_be_an_id_or_none(value: int | None) -> None:
    assert read({**TRANSFORMERS_4, "bos_token_id": value}).bos_token_id == value


IMPOSSIBLE = [
    *(
        ({name: value}, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for value in (0, -1, 1.5, "8", None, True)
    ),
    *(({name: 0}, name) for name in ("num_key_value_heads", "head_dim", "max_position_embeddings")),
    ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_attention_heads"),
    ({"num_attention_heads": 4, "num_key_value_heads": 8}, "num_key_value_heads"),
    ({"head_dim": 15}, "head_dim"),
    *(({"rms_norm_eps": value}, "rms_norm_eps") for value in (0, -1e-6, math.nan, math.inf, "1e-6", None, 10**400)),
    *(({"rope_theta": value}, "rope_theta") for value in (0.0, -1.0, math.inf, "big", None, False)),
    ({"rope_parameters": {"rope_theta": -5.0, "rope_type": "default"}}, "rope_theta"),
    ({"rope_parameters": [10000.0]}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    *(({"attention_bias": value}, "attention_bias") for value in ("false", 0, None)),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    *(({"torch_dtype": value}, "dtype") for value in ("int8", "float64", "torch.float16", 16, ["float16"])),
    *(({"eos_token_id": value}, "eos_token_id") for value in ("</s>", [1, "2"], 1.0, True, {"id": 1})),
    *(({"bos_token_id": value}, "bos_token_id") for value in ("<s>", [2], 2.0, True, -1)),
    *(({name: "relu"}, name) for name in ("hidden_act", "hidden_activation")),
    ({"hidden_act": ["gelu"]}, "hidden_act"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
]


@pytest.mark.parametrize(("change", "named"), IMPOSSIBLE, ids=lambda value: str(value)[:50])
def test_impossible_values_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        read({**TRANSFORMERS_4, **change})

    message = str(error.value)
    assert message.startswith("DIR/config.json: ")
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma4_text", "llama", None, 1])
def test_other_model_types_are_refused(model_type: object) -> None:
    with pytest.raises(UserError, match=r"config\.json: model_type is .*supported are"):
        read({**TRANSFORMERS_4, "model_type": model_type})


def test_a_file_without_model_type_is_refused() -> None:
    with pytest.raises(UserError, match="model_type is None"):
        read({})


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path: .*nowhere is not a directory"):
        read_config(tmp_path / "nowhere")


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(UserError, match=r"file is not a directory"):
        read_config(tmp_path / "file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"m\.gguf is a GGUF file .* graph-gemma convert model.path=FILE.gguf"):
        read_config(tmp_path / "m.gguf")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_config(tmp_path)


MALFORMED = [b"", b"{", b'{"model_type": "gemma",}', b"\xff\xfe\x00", b"[" * 100_000]


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: repr(content[:12]))
def test_malformed_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ('"gemma"', "str"), ("null", "NoneType"), ("3", "int")])
def test_json_other_than_an_object_is_refused(content: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json holds a JSON {kind}; it must hold an object"):
        read_config(tmp_path)


def test_read_config_reads_the_file_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS_4))
    assert read_config(tmp_path) == GEMMA_2B


@pytest.mark.parametrize("config", [GEMMA_2B, GEMMA_7B, *TINY_CONFIGS.values()])
def test_named_configs_survive_writing_and_reading(config: GemmaConfig) -> None:
    assert read(json.loads(json.dumps(config.to_json()))) == config


sizes = st.integers(1, 1 << 20)
positive = st.floats(1e-12, 1e12, allow_nan=False)
configs = st.builds(
    lambda group, **fields: replace(GemmaConfig(**fields), num_attention_heads=fields["num_key_value_heads"] * group),
    group=st.integers(1, 16),
    vocab_size=sizes,
    hidden_size=sizes,
    intermediate_size=sizes,
    num_hidden_layers=st.integers(1, 1024),
    num_key_value_heads=st.integers(1, 64),
    head_dim=st.integers(1, 256).map(lambda half: 2 * half),
    max_position_embeddings=sizes,
    rms_norm_eps=positive,
    rope_theta=positive,
    attention_bias=st.booleans(),
    tie_word_embeddings=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    bos_token_id=st.none() | st.integers(0, 1000),
    eos_token_ids=st.lists(st.integers(0, 1000), max_size=3).map(tuple),
)


@given(configs)
def test_any_config_survives_writing_and_reading(config: GemmaConfig) -> None:
    assert read(json.loads(json.dumps(config.to_json()))) == config


def test_scales_follow_the_sizes() -> None:
    assert GEMMA_7B.softmax_scale == 1 / 16
    assert GEMMA_7B.embedding_scale**2 == pytest.approx(3072)
