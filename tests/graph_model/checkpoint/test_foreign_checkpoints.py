"""Checkpoints as other tools write them: a plain Gemma's weights are read, the rest is named with its way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.foreign_checkpoints import Weights, assert_reads, refusal, rewrite, set_config, weights_of

from graph_gemma.graph_model.config_file import read_config

Q = "model.layers.0.self_attn.q_proj"


# Another tool's quantization.


def bitsandbytes_8(w: Weights) -> None:
    w.update({f"{Q}.SCB": torch.ones(64), f"{Q}.weight": w[f"{Q}.weight"].to(torch.int8)})


def bitsandbytes_4(w: Weights) -> None:
    packed = torch.zeros(w[f"{Q}.weight"].numel() // 2, 1, dtype=torch.uint8)
    w.update({f"{Q}.weight": packed, f"{Q}.weight.absmax": torch.zeros(48, dtype=torch.uint8)})
    w[f"{Q}.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)


def gptq(w: Weights) -> None:
    del w[f"{Q}.weight"]
    w.update({f"{Q}.qweight": torch.zeros(6, 64, dtype=torch.int32), f"{Q}.g_idx": torch.zeros(48, dtype=torch.int32)})


def awq(w: Weights) -> None:
    del w[f"{Q}.weight"]
    w.update(
        {f"{Q}.qweight": torch.zeros(48, 8, dtype=torch.int32), f"{Q}.qzeros": torch.zeros(1, 8, dtype=torch.int32)}
    )


def compressed_int4(w: Weights) -> None:
    del w[f"{Q}.weight"]
    w.update({f"{Q}.weight_packed": torch.zeros(64, 6, dtype=torch.int32), f"{Q}.weight_scale": torch.ones(64, 2)})


def compressed_int8(w: Weights) -> None:
    w.update({f"{Q}.weight": w[f"{Q}.weight"].to(torch.int8), f"{Q}.weight_scale": torch.ones(64, 1)})


def fp8(w: Weights) -> None:
    w.update({f"{Q}.weight": w[f"{Q}.weight"].to(torch.float8_e4m3fn), f"{Q}.weight_scale": torch.ones(1)})


def mlx(w: Weights) -> None:
    w.update({f"{Q}.weight": torch.zeros(64, 6).to(torch.uint32), f"{Q}.scales": torch.ones(64, 1)})
    w[f"{Q}.biases"] = torch.ones(64, 1)


def quanto(w: Weights) -> None:
    w.update({f"{Q}.weight._data": w.pop(f"{Q}.weight").to(torch.int8), f"{Q}.weight._scale": torch.ones(64, 1)})
    w.update({f"{Q}.input_scale": torch.ones(1), f"{Q}.output_scale": torch.ones(1)})


def hqq(w: Weights) -> None:
    del w[f"{Q}.weight"]
    w.update({f"{Q}.W_q": torch.zeros(64, 24, dtype=torch.uint8), f"{Q}.scale": torch.ones(64, 1)})


def modelopt(w: Weights) -> None:
    w.update({f"{Q}.weight": torch.zeros(64, 24, dtype=torch.uint8), f"{Q}.weight_scale_2": torch.ones(1)})


QUANTIZED: dict[str, tuple[Callable[[Weights], None], dict[str, Any], str]] = {
    "bitsandbytes 8 bit": (bitsandbytes_8, {"load_in_8bit": True}, "bitsandbytes"),
    "bitsandbytes 4 bit": (bitsandbytes_4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}, "gptq"),
    "awq": (awq, {"quant_method": "awq", "bits": 4}, "awq"),
    "int4 of compressed-tensors": (compressed_int4, {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "int8 of compressed-tensors": (compressed_int8, {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "mlx": (mlx, {"quant_method": "mlx", "bits": 4}, "mlx"),
    "fp8": (fp8, {"quant_method": "fp8"}, "fp8"),
    "quanto": (quanto, {"quant_method": "quanto"}, "quanto"),
    "hqq": (hqq, {"quant_method": "hqq"}, "hqq"),
    "modelopt": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_foreign_quantization_is_named_with_the_way_out(name: str, directory: Path) -> None:
    change, config, method = QUANTIZED[name]
    rewrite(directory, change)
    unsaid = refusal(directory)  # config.json does not say it: only the tensors do
    set_config(directory, quantization_config=config)
    said = refusal(directory)
    assert f"quantization_config says that the weights are quantized by {method}" in said
    for message in (unsaid, said):
        assert "16-bit original" in message
        assert '"w8a8"' not in message  # what ModelSlim's checkpoints would need
    if name != "int8 of compressed-tensors":  # whose tensors could be anybody's
        assert any(part in unsaid.lower() for part in (method, "fp8", "gptq or awq"))


def test_the_field_of_mlx_is_read_as_its_own(directory: Path) -> None:
    set_config(directory, quantization={"group_size": 64, "bits": 4})
    assert "quantization says that the weights are quantized by MLX (4 bit)" in refusal(directory)


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_quantization_config_is_none(value: Any, directory: Path) -> None:
    set_config(directory, quantization_config=value)
    assert_reads(directory, weights_of(directory))


def test_what_a_merge_left_in_the_config_is_to_be_removed(directory: Path) -> None:
    """Unsloth's merged_16bit of a 4-bit base: 16-bit weights, and in some versions the base's quantization_config."""
    set_config(directory, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "If the weights are in 16 bit after all, remove quantization_config" in refusal(directory)
    set_config(directory, quantization_config=None)
    assert_reads(directory, weights_of(directory))


# Adapters.


def make_adapter(directory: Path, kind: str = "LORA") -> None:
    raw = {"peft_type": kind, "base_model_name_or_path": "google/gemma-2b", "r": 4}
    (directory / "adapter_config.json").write_text(json.dumps(raw))
    lora = {f"base_model.model.{Q}.lora_{x}.weight": torch.zeros(4, 4) for x in "AB"}
    save_file(lora, directory / "adapter_model.safetensors")


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_named_with_its_base(has_config: bool, directory: Path) -> None:
    make_adapter(directory)
    (directory / "model.safetensors").unlink()
    if not has_config:
        (directory / "config.json").unlink()
    message = refusal(directory)
    assert "holds an adapter (LORA, adapter_model.safetensors) of the base model 'google/gemma-2b'" in message
    assert "merge_and_unload" in message


def test_an_adapter_beside_weights_is_not_ignored(directory: Path) -> None:
    make_adapter(directory)
    assert "merged already, remove adapter_config.json" in refusal(directory)


def test_an_adapter_that_cannot_be_merged_says_so(directory: Path) -> None:
    make_adapter(directory, "PROMPT_TUNING")
    assert "cannot be merged" in refusal(directory)


def test_the_config_alone_of_a_merged_adapter_is_harmless(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")
    assert_reads(directory, weights_of(directory))


def test_unmerged_layers_of_peft_are_named(directory: Path) -> None:
    def change(w: Weights) -> None:
        w[f"{Q}.base_layer.weight"] = w.pop(f"{Q}.weight")
        w[f"{Q}.lora_A.default.weight"] = torch.zeros(4, 48)

    rewrite(directory, change)
    assert "adapter (LoRA) that is not merged" in refusal(directory)


# Names.


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod.", "module.", "base_model.model.", "pretrained_model.", "language_model.", None]
)
def test_weights_under_another_prefix_are_read(wrapper: str | None, directory: Path) -> None:
    """None: as a GemmaModel's own weights are called, which is no GemmaForCausalLM."""
    prefix = "" if wrapper is None else f"{wrapper}model."
    expected = weights_of(directory)
    rewrite(directory, lambda w: [w.update({prefix + name.removeprefix("model."): w.pop(name)}) for name in list(w)])
    assert_reads(directory, expected)


def test_the_head_goes_with_the_prefix(directory: Path) -> None:
    set_config(directory, tie_word_embeddings=False)
    rewrite(directory, lambda w: w.update({"lm_head.weight": torch.randn(256, 48).bfloat16()}))
    expected = weights_of(directory)
    rewrite(directory, lambda w: [w.update({f"module.{name}": w.pop(name)}) for name in list(w)])
    assert_reads(directory, expected)


def test_two_models_in_one_file_are_refused(directory: Path) -> None:
    rewrite(directory, lambda w: [w.update({f"draft.{name}": w[name].clone()}) for name in list(w)])
    assert "tensors are not part of this model: draft." in refusal(directory)


def shard(directory: Path, index_only: tuple[str, ...] = (), shard_only: Weights | None = None) -> Weights:
    weights = weights_of(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    weight_map = {name: file for file, members in files.items() for name in members}
    last = list(files)[-1]
    for file, members in files.items():
        extra = (shard_only or {}) if file == last else {}
        save_file({**{name: weights[name] for name in members}, **extra}, directory / file)
    weight_map.update(dict.fromkeys(index_only, last))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weights


def test_index_and_shards_may_differ_by_what_is_not_read(directory: Path) -> None:
    embedding = weights_of(directory)["model.embed_tokens.weight"].clone()
    tables = {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    expected = shard(directory, ("lm_head.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"))
    assert_reads(directory, expected)
    for path in directory.glob("model*"):
        path.unlink()
    save_file(expected, directory / "model.safetensors")
    shard(directory, (), tables)
    assert_reads(directory, expected)


def test_a_head_missing_from_the_index_must_be_the_embedding(directory: Path) -> None:
    shard(directory, (), {"lm_head.weight": torch.randn(256, 48).bfloat16()})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(directory)


def test_an_untied_head_that_an_index_promises_is_missed(directory: Path) -> None:
    set_config(directory, tie_word_embeddings=False)
    shard(directory, ("lm_head.weight",))
    assert "lacks 1 tensors that the index says it holds, first lm_head.weight" in refusal(directory)


def test_an_untied_config_without_a_head_says_what_to_set(directory: Path) -> None:
    set_config(directory, tie_word_embeddings=False)
    assert "set tie_word_embeddings to true" in refusal(directory)


@pytest.mark.parametrize("name", ["score.weight", "classifier.bias", "v_head.summary.weight"])
def test_models_that_score_are_named(name: str, directory: Path) -> None:
    rewrite(directory, lambda w: w.update({name: torch.zeros(2)}))
    assert "generates no text" in refusal(directory)


# Other frameworks' files.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma-2b.Q4_K_M.gguf", "graph-gemma convert model.path=FILE.gguf"),
        ("model.weights.h5", "keras_hub"),
        ("task.json", "keras_hub"),
        ("_METADATA", "Orbax"),
        ("flax_model.msgpack", "from_flax"),
        ("tf_model.h5", "from_tf"),
        ("gemma-2b.ckpt", "gemma_pytorch"),
        ("consolidated.00.pth", "another layout"),
        ("model.onnx", "ONNX"),
        ("checkpoint-500", "give the folder of one of them"),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("zero_to_fp32.py", "DeepSpeed"),
    ],
)
def test_other_frameworks_files_are_named(name: str, message: str, directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / name)
    assert message in refusal(directory)
    (directory / "config.json").write_text('{"class_name": "GemmaBackbone"}')  # as Keras has one of its own
    assert message in refusal(directory)
    (directory / "config.json").unlink()
    assert message in refusal(directory)


def test_an_embedding_that_grew_says_what_to_set(directory: Path) -> None:
    rewrite(directory, lambda w: w.update({"model.embed_tokens.weight": torch.zeros(257, 48).bfloat16()}))
    assert "If tokens were added, set vocab_size to 257 in config.json" in refusal(directory)
    set_config(directory, vocab_size=257)
    assert_reads(directory, weights_of(directory))


def test_what_keras_hub_exports_is_read(directory: Path) -> None:
    """Its config.json has no dtype, no epsilon, no rotary base and no activation; the defaults are Gemma's."""
    names = ("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    names += ("intermediate_size", "head_dim", "max_position_embeddings", "tie_word_embeddings", "model_type")
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({name: raw[name] for name in names}))
    assert_reads(directory, weights_of(directory))
    config = read_config(directory)
    assert (config.rms_norm_eps, config.rope_theta, config.eos_token_ids) == (1e-6, 10000.0, (1,))


def test_keys_of_the_first_head_alone_are_refused(directory: Path) -> None:
    """keras_hub's exporter writes them so for models with several key heads."""
    set_config(directory, num_key_value_heads=4)
    assert "k_proj.weight" in refusal(directory)


def test_what_mergekit_writes_is_read(directory: Path) -> None:
    """Shards, its recipe, a README, and the head of the model that was merged in."""
    expected = shard(directory, (), {"lm_head.weight": weights_of(directory)["model.embed_tokens.weight"]})
    (directory / "mergekit_config.yml").write_text("merge_method: slerp\nmodels: []\n")
    (directory / "README.md").write_text("---\nbase_model: []\n---\n")
    assert_reads(directory, expected)


def test_what_mlx_writes_in_16_bit_is_read(directory: Path) -> None:
    expected = weights_of(directory)
    save_file(expected, directory / "model.safetensors", {"format": "mlx"})
    assert_reads(directory, expected)
