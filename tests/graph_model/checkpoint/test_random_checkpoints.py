"""The random checkpoints that other tests compare on: their output depends on the whole context."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint, make_model
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.runners.backends.transformers_import import import_transformers

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_next_token_depends_on_early_tokens_and_is_not_an_echo(name: str, dtype: torch.dtype) -> None:
    config = TINY_CONFIGS[name]
    model = make_model(config, dtype=dtype)
    ids = torch.randint(0, config.vocab_size, (24, 40), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 1] = (ids[:, 1] + 17) % config.vocab_size
    with torch.no_grad():
        tokens = model(ids).logits.argmax(-1)
        other = model(changed).logits.argmax(-1)

    assert (tokens == ids).float().mean() < 0.1
    assert (tokens != other)[:, 39].float().mean() > 0.3
    assert torch.equal(tokens[:, 0], other[:, 0])  # nothing looks ahead
    assert tokens.unique().numel() > 50


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_config_json_of_transformers_reads_back(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY_CONFIGS[name], dtype=torch.float16)

    assert read_config(tmp_path) == replace(TINY_CONFIGS[name], dtype="float16")


def test_transformers_reads_the_config_json_that_we_write(tmp_path: Path) -> None:
    config = replace(TINY_CONFIGS["rope_and_eps"], dtype="bfloat16", eos_token_ids=(1, 107), tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))

    theirs = import_transformers().GemmaConfig.from_pretrained(tmp_path)

    same = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    same += ["num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias"]
    same += ["tie_word_embeddings", "bos_token_id"]
    assert {field: getattr(theirs, field) for field in same} == {field: getattr(config, field) for field in same}
    assert (getattr(theirs, "rope_parameters", None) or vars(theirs))["rope_theta"] == 500.0
    assert theirs.eos_token_id == [1, 107]
    assert theirs.torch_dtype == torch.bfloat16
    assert read_config(tmp_path) == config


def test_tiny_configs_cover_what_a_config_can_differ_in() -> None:
    configs = list(TINY_CONFIGS.values())
    default = GemmaConfig()
    assert any(c.head_dim * c.num_attention_heads != c.hidden_size for c in configs)
    assert any(c.num_key_value_heads == 1 for c in configs)
    assert any(1 < c.num_key_value_heads < c.num_attention_heads for c in configs)
    assert any(not c.tie_word_embeddings for c in configs)
    assert any(c.vocab_size % 2 for c in configs)
    assert any(c.rope_theta != default.rope_theta and c.rms_norm_eps != default.rms_norm_eps for c in configs)
    assert any(c.attention_bias for c in configs)
