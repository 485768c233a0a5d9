"""ModelSlim's layout is read in both dialects; what disagrees or is not supported is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.modelslim import QuantizedTensors, quantized_tensors, write_checkpoint

from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme
from graph_gemma.graph_model.quantization.w8a8 import DeqScale

CONFIG = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2)
LINEARS = select_linears(CONFIG, ["down_proj", "lm_head"])
Q = "model.layers.0.self_attn.q_proj"


def state(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in make_model(CONFIG, dtype=dtype).named_parameters()}


STATE = state(torch.float16)


def made(scheme: str = "w8a8", dialect: str = "atb", dtype: torch.dtype = torch.float16) -> QuantizedTensors:
    return quantized_tensors(STATE, LINEARS, scheme, dtype, dialect)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dialect", ["atb", "vllm_ascend"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8a16"])
def test_both_dialects_are_read(scheme: str, dialect: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = made(scheme, dialect, dtype)
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, scheme, dialect)
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantization == Quantization(scheme, LINEARS, stored=True)
        for name in opened.names:
            assert torch.equal(opened.read(name), checkpoint.tensors[name])
            assert opened.dtype(name) == checkpoint.tensors[name].dtype
        plain = torch.empty(STATE[f"{Q}.weight"].shape)
        find_scheme(scheme).plain(Q, "weight", tuple(plain.shape), torch.float32).write(plain, opened.read)
        weight = STATE[f"{Q}.weight"].to(dtype).float()
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((plain - weight).abs() <= 0.51 * step + 0.004 * weight.abs()).all()


def test_the_scale_of_a_float16_model_is_the_bits_in_int64() -> None:
    stored = made().tensors[f"{Q}.deq_scale"]
    assert stored.dtype == torch.int64
    out = torch.empty(stored.shape)
    DeqScale(f"{Q}.deq_scale", tuple(stored.shape)).write(out, lambda name: stored)
    assert np.array_equal(out.numpy(), stored.numpy().astype(np.uint32).view(np.float32))


def test_vllm_ascends_own_config_is_read_by_its_description(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), made("w8a8", "vllm_ascend"), "w8a8", "vllm_ascend")
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIG.to_json()))
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantization == Quantization("w8a8", LINEARS, stored=True)


Change = Callable[[QuantizedTensors, dict[str, object]], object]

REFUSALS: dict[str, tuple[Change, str]] = {
    "quantize disagrees": (
        lambda m, c: c.update(quantize="w8a16"),
        "quantize is 'w8a16', but .* has tensors of W8A8 and none of W8A16. Set quantize",
    ),
    "unknown quantize": (lambda m, c: c.update(quantize="w4a16"), "quantize is 'w4a16'; supported are w8a8"),
    "unknown kind": (
        lambda m, c: m.description.update({f"{Q}.weight": "W4A8"}),
        "q_proj.weight is 'W4A8'; with quantize 'w8a8'",
    ),
    "described but absent": (
        lambda m, c: [m.tensors.pop(name) for name in list(m.tensors) if name.startswith(f"{Q}.")],
        f"missing: {Q}.weight",
    ),
    "scale missing": (lambda m, c: m.tensors.pop(f"{Q}.deq_scale"), f"missing: {Q}.deq_scale"),
    "float weight": (
        lambda m, c: m.tensors.update({f"{Q}.weight": m.tensors[f"{Q}.weight"].half()}),
        "weight has the dtype F16.* it must be I8. If the weights are floating-point, remove quantize",
    ),
    "int8 weight described as float": (
        lambda m, c: [m.description.update({n: "FLOAT"}) for n in list(m.description) if ".1.mlp" in n],
        "8 tensors are not part of this model: model.layers.1.mlp.gate_proj.deq_scale",
    ),
    "part of a group": (
        lambda m, c: [m.description.update({n: "FLOAT"}) for n in list(m.description) if n.startswith(f"{Q}.")],
        "of .*q_proj, .*k_proj, .*v_proj some are W8A8 and some FLOAT",
    ),
    "unequal scales of a group": (
        lambda m, c: m.tensors[f"{Q}.input_scale"].mul_(2),
        "have one input, but the input_scale .* must be equal",
    ),
    "scale of 0": (lambda m, c: m.tensors[f"{Q}.input_scale"].zero_(), "has input_scale 0"),
    "wrong shape": (
        lambda m, c: m.tensors.update({f"{Q}.quant_bias": torch.zeros(3, dtype=torch.int32)}),
        r"q_proj.quant_bias has the shape \[3\]",
    ),
    "int8 cache": (
        lambda m, c: m.tensors.update({"model.layers.0.self_attn.k_proj.kv_cache_scale": torch.ones(1)}),
        "not part of this model: model.layers.0.self_attn.k_proj.kv_cache_scale",
    ),
    "a norm with a bias": (
        lambda m, c: m.tensors.update({"model.norm.module.bias": torch.ones(1)}),
        "model.norm.module.bias is not 0; Gemma's norms have no bias",
    ),
    "two weights of a norm": (
        lambda m, c: m.tensors.update({"model.norm.module.weight": m.tensors["model.norm.weight"].clone()}),
        "both model.norm.weight and model.norm.module.weight are there, as ModelSlim's anti-outlier methods write",
    ),
    "deq_scale of NaN": (
        lambda m, c: m.tensors[f"{Q}.deq_scale"].__setitem__(3, 0x7FC00000),
        "q_proj.deq_scale is nan for channel 3; scales are finite",
    ),
    "deq_scale below 0": (
        lambda m, c: m.tensors[f"{Q}.deq_scale"].__setitem__(2, 0xBF800000),
        "q_proj.deq_scale is -1 for channel 2",
    ),
    "weight described that is not there": (
        lambda m, c: m.description.update({"model.layers.0.self_attn.foo.weight": "FLOAT"}),
        "describes model.layers.0.self_attn.foo.weight, which the weights do not hold. Description and weights",
    ),
    "scales described that are not there": (
        lambda m, c: m.description.update({"nonsense.input_scale": "W8A8", "nonsense.input_offset": "W8A8"}),
        "describes nonsense.input_scale and 1 more, which the weights do not hold",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, tmp_path: Path) -> None:
    change, message = REFUSALS[name]
    checkpoint, config = made(), CONFIG.to_json()
    write_checkpoint(tmp_path / "c", config, checkpoint, "w8a8")
    path = tmp_path / "c" / "config.json"
    raw = json.loads(path.read_text())
    change(checkpoint, raw)
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    (tmp_path / "c").rmdir()
    write_checkpoint(tmp_path / "c", config, checkpoint, "w8a8")
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))


def test_a_missing_or_damaged_description_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), made(), "w8a8")
    description = tmp_path / "c" / "quant_model_description_w8a8.json"
    for content, message in (("[]", "holds a JSON list"), ("{}", "must have entries that map tensor names")):
        description.write_text(content)
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))
    description.unlink()
    with pytest.raises(UserError, match=r"quantize is 'w8a8', but quant_model_description_w8a8.json is missing"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIG.to_json()))
    with pytest.raises(UserError, match=r'has the dtype I8, but config.json .* Add "quantize"'):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-0.5, "-0.5")])
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8_dynamic"])
def test_scales_of_weights_that_cannot_be_are_refused(scheme: str, value: float, shown: str, tmp_path: Path) -> None:
    checkpoint = made(scheme)
    checkpoint.tensors[f"{Q}.weight_scale"][5] = value
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, scheme)
    with pytest.raises(UserError, match=f"{Q}.weight_scale is {shown} for channel 5; scales are finite"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))


def test_a_tied_head_may_be_described(tmp_path: Path) -> None:
    assert CONFIG.tie_word_embeddings
    checkpoint = made()
    checkpoint.tensors.pop("lm_head.weight", None)
    checkpoint.description["lm_head.weight"] = "FLOAT"
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a8")
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantization == Quantization("w8a8", LINEARS, stored=True)


def test_a_norm_that_modelslim_wrapped_is_read_by_its_own_name(tmp_path: Path) -> None:
    checkpoint = made()
    norm = "model.layers.1.post_attention_layernorm"
    weight = checkpoint.tensors.pop(f"{norm}.weight")
    checkpoint.description.pop(f"{norm}.weight")
    checkpoint.tensors.update({f"{norm}.module.weight": weight, f"{norm}.module.bias": torch.zeros_like(weight)})
    checkpoint.description.update({f"{norm}.module.weight": "FLOAT", f"{norm}.module.bias": "FLOAT"})
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a8")
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert f"{norm}.weight" in opened.names
        assert torch.equal(opened.read(f"{norm}.weight"), weight)
        opened.release(f"{norm}.weight")
        assert torch.equal(opened.read_slice(f"{norm}.weight", 0, 2, 5), weight[2:5])


def test_a_weight_offset_is_refused(tmp_path: Path) -> None:
    checkpoint = made("w8a16")
    checkpoint.tensors[f"{Q}.weight_offset"][0] = 3
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a16")
    with pytest.raises(UserError, match="weight_offset is not 0: its weights are asymmetric"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))


# What ModelSlim's anti-outlier methods leave, which take Gemma's norm for another.

NORM = "model.layers.1.post_attention_layernorm"


def opened_message(checkpoint: QuantizedTensors, directory: Path, **config: object) -> str:
    write_checkpoint(directory, CONFIG.to_json(), checkpoint, "w8a8")
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    with pytest.raises(UserError) as caught:
        open_checkpoint(directory, read_config(directory))
    return str(caught.value)


def test_a_norm_smoothed_by_the_older_generation_is_refused(tmp_path: Path) -> None:
    checkpoint = made()
    weight = checkpoint.tensors[f"{NORM}.weight"]
    for form, kind in (("", "FLOAT"), (".module", "W8A8")):
        for name, tensor in (("weight", weight.clone()), ("bias", torch.zeros_like(weight))):
            checkpoint.tensors[f"{NORM}{form}.{name}"] = tensor
            checkpoint.description[f"{NORM}{form}.{name}"] = kind
    message = opened_message(checkpoint, tmp_path / "c")
    assert f"both {NORM}.weight and {NORM}.module.weight are there" in message
    assert "Gemma's is (1 + w) * n" in message
    assert "graph-gemma quantize" in message


@pytest.mark.parametrize("form", ["bias", "module.bias"])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_of_norms_are_read_if_they_are_zero(form: str, value: float, tmp_path: Path) -> None:
    checkpoint = made()
    name = f"{NORM}.{form}"
    checkpoint.tensors[name] = torch.full((CONFIG.hidden_size,), value).half()
    checkpoint.description[name] = "FLOAT"
    if value:
        assert f"{name} is not 0; Gemma's norms have no bias" in opened_message(checkpoint, tmp_path / "c")
        return
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a8")
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert f"{NORM}.weight" in opened.names
        assert name not in opened.names


@pytest.mark.parametrize("step", ["iter_smooth", "quarot", "flex_smooth_quant", "flex_awq_ssz"])
@pytest.mark.parametrize("form", ["spec:\n  process:\n  - type: linear_quant\n  - type: {}\n", '{{"type":"{}"}}'])
def test_a_recipe_that_smooths_is_refused(step: str, form: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "d", CONFIG.to_json(), made(), "w8a8")
    (tmp_path / "d" / "Gemma_best_practice.yaml").write_text(form.format(step))
    with pytest.raises(UserError, match=rf"quantized with {step}\. ModelSlim takes a norm for w \* n"):
        open_checkpoint(tmp_path / "d", read_config(tmp_path / "d"))


def test_a_recipe_that_only_quantizes_is_harmless(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), made(), "w8a8")
    recipe = "spec:\n  process:\n  - type: group\n    configs:\n    - type: linear_quant\n  save:\n  - type: saver\n"
    (tmp_path / "c" / "Gemma_best_practice.yaml").write_text(recipe)
    open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")).close()


def test_rotations_that_a_description_names_are_refused(tmp_path: Path) -> None:
    checkpoint = made()
    checkpoint.description["metadata"] = {"quarot": {"max_tp_size": 4}}  # type: ignore[assignment]
    assert "was rotated (quarot)" in opened_message(checkpoint, tmp_path / "c")


@pytest.mark.parametrize("quantize", [None, "w8a8_mix", "w8a8"])
def test_a_scheme_that_is_not_supported_is_not_advised(quantize: str | None, tmp_path: Path) -> None:
    checkpoint = made()
    kinds = {name: kind.replace("W8A8", "W8A8_MIX") for name, kind in checkpoint.description.items()}
    checkpoint.description.update(kinds)
    message = opened_message(checkpoint, tmp_path / "c", quantize=quantize)
    assert '"quantize": ' not in message
    assert "Set quantize" not in message
    assert "graph-gemma quantize" in message


def test_a_description_of_nothing_but_floats_is_harmless(tmp_path: Path) -> None:
    checkpoint = quantized_tensors(STATE, (), "w8a8", torch.float16)
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a8")
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIG.to_json()))
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantization is None
