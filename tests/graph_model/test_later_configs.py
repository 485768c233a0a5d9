"""config.json of Gemma 2 and 3, in every spelling that transformers wrote, and the named sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import LATER_CONFIGS

from graph_gemma.graph_model.config import NAMED_CONFIGS, Gemma2Config, Gemma3Config, GemmaConfig, layer_types
from graph_gemma.graph_model.config_file import from_json
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.runners.backends.transformers_import import import_transformers

GEMMA2 = {"model_type": "gemma2", "num_hidden_layers": 4}
GEMMA3 = {"model_type": "gemma3_text", "num_hidden_layers": 4}
# rope_theta and rope_local_base_freq of transformers 4.50, rope_parameters of 5.
FULL, SLIDING = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}, {"rope_theta": 5e3, "rope_type": "default"}
ROTARY_SPELLINGS: dict[str, dict[str, Any]] = {
    "4": {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "older": {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "5": {"rope_parameters": {"full_attention": FULL, "sliding_attention": SLIDING}},
    "5 first": {"rope_parameters": {"full_attention": FULL, "sliding_attention": SLIDING}, "rope_theta": 7.0},
}


def read(raw: dict[str, Any]) -> GemmaConfig:
    return from_json(raw, "config.json")


@pytest.mark.parametrize("name", LATER_CONFIGS)
def test_what_is_written_is_read_back(name: str) -> None:
    config = LATER_CONFIGS[name]
    assert read(config.to_json()) == config


@pytest.mark.parametrize("name", LATER_CONFIGS)
def test_what_transformers_writes_is_read(name: str) -> None:
    transformers = import_transformers()
    config = LATER_CONFIGS[name]
    theirs = transformers.CONFIG_MAPPING[config.model_type](**config.to_json())
    assert read({**theirs.to_dict(), "dtype": "float32"}) == config


@pytest.mark.parametrize("rotary", ROTARY_SPELLINGS.values(), ids=ROTARY_SPELLINGS)
def test_rotary_settings_of_gemma3(rotary: dict[str, Any]) -> None:
    config = read({**GEMMA3, **rotary})
    assert isinstance(config, Gemma3Config)
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_factor) == (5e5, 5e3, 4.0)


def test_layers_follow_the_pattern_or_the_list() -> None:
    assert read(GEMMA3).layer_types == ("sliding_attention",) * 4  # type: ignore[attr-defined]
    assert read({**GEMMA3, "sliding_window_pattern": 2}).layer_types == layer_types(4, 2)  # type: ignore[attr-defined]
    assert read(GEMMA2).layer_types == layer_types(4, 2)  # type: ignore[attr-defined]
    listed = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert read({**GEMMA3, "layer_types": listed}).layer_types == tuple(listed)  # type: ignore[attr-defined]


def test_the_text_part_of_a_multimodal_model() -> None:
    """The 4B's config.json states little more than its shape, inside text_config."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}  # type: ignore[assignment]
    raw = {
        "model_type": "gemma3",
        "text_config": {**text, "model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
    }
    others = {"eos_token_ids": (1, 106), "image_token_ids": (255999, 262144)}
    assert read(raw) == replace(NAMED_CONFIGS["gemma3_4b"], **others)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gemma_2b", 2_506_172_416),
        ("gemma_7b", 8_537_680_896),
        ("gemma2_2b", 2_614_341_888),
        ("gemma2_9b", 9_241_705_984),
        ("gemma2_27b", 27_227_128_320),
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
    ],
)
def test_named_sizes_have_the_published_parameters(name: str, parameters: int) -> None:
    tensors = family_of(NAMED_CONFIGS[name]).tensors
    total = 0
    for shape in tensors.values():
        size = 1
        for each in shape:
            size *= each
        total += size
    assert total == parameters


BAD: list[tuple[dict[str, Any], str]] = [
    ({**GEMMA3, "layer_types": ["full_attention"] * 3}, "layer_types has 3 entries and num_hidden_layers is 4"),
    ({**GEMMA3, "layer_types": ["chunked_attention"] * 4}, "layer_types is .*it must be a list of"),
    ({**GEMMA3, "layer_types": 6}, "layer_types is 6"),
    ({**GEMMA3, "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ({**GEMMA2, "sliding_window": 0}, "sliding_window is 0"),
    ({**GEMMA2, "sliding_window": None}, "sliding_window is None"),
    ({**GEMMA2, "attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    ({**GEMMA2, "final_logit_softcapping": -30.0}, r"final_logit_softcapping is -30\.0"),
    ({**GEMMA2, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ({**GEMMA2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope type 'linear'; Gemma 2 uses plain"),
    ({**GEMMA3, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope type 'yarn'; Gemma 3 uses plain or"),
    ({**GEMMA3, "rope_scaling": {"rope_type": "linear"}}, "factor is None"),
    (
        {**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope type 'linear'",
    ),
    ({**GEMMA3, "rope_parameters": {"rope_theta": 1e4}}, "Gemma 3 has those of full_attention and of"),
    ({**GEMMA3, "rope_parameters": []}, "rope_parameters"),
    ({**GEMMA3, "attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50\.0; Gemma 3 has none"),
    ({"model_type": "gemma3", "text_config": None}, "text_config is None; it must be an object"),
    ({"model_type": "gemma3", "text_config": {"model_type": "llama"}}, "model_type is 'llama'"),
]


@pytest.mark.parametrize(("raw", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_fields_are_refused_by_name(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        read(raw)


def test_softcaps_may_be_null() -> None:
    config = read({**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert isinstance(config, Gemma2Config)
    assert (config.attn_logit_softcapping, config.logit_softcap) == (None, None)
    assert "logit_softcap" not in family_of(config).attributes(torch.float32)
