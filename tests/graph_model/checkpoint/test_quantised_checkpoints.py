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
from support.modelslim import QuantisedTensors, quantised_tensors, write_checkpoint

from graph_model.checkpoint import open_checkpoint
from graph_model.config import read_config
from graph_model.errors import UserError
from graph_model.quantisation import Quantisation, select_linears
from graph_model.quantised_weights import DeqScale, Dequantised

CONFIG = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2)
LINEARS = select_linears(CONFIG, ["down_proj", "lm_head"])
Q = "model.layers.0.self_attn.q_proj"


def state(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in make_model(CONFIG, dtype=dtype).named_parameters()}


STATE = state(torch.float16)


def made(scheme: str = "w8a8", dialect: str = "atb", dtype: torch.dtype = torch.float16) -> QuantisedTensors:
    return quantised_tensors(STATE, LINEARS, scheme, dtype, dialect)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dialect", ["atb", "vllm_ascend"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8a16"])
def test_both_dialects_are_read(scheme: str, dialect: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = made(scheme, dialect, dtype)
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, scheme, dialect)
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantisation == Quantisation(scheme, LINEARS, stored=True)
        for name in opened.names:
            assert torch.equal(opened.read(name), checkpoint.tensors[name])
            assert opened.dtype(name) == checkpoint.tensors[name].dtype
        plain = torch.empty(STATE[f"{Q}.weight"].shape)
        Dequantised(Q, tuple(plain.shape), torch.float32, scheme == "w8a8").write(plain, opened.read)
        weight = STATE[f"{Q}.weight"].to(dtype).float()
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((plain - weight).abs() <= 0.51 * step + 0.004 * weight.abs()).all()


def test_the_scale_of_a_float16_model_is_the_bits_in_int64() -> None:
    stored = made().tensors[f"{Q}.deq_scale"]
    assert stored.dtype == torch.int64
    out = torch.empty(stored.shape)
    DeqScale(f"{Q}.deq_scale", tuple(stored.shape)).write(out, lambda name: stored)
    assert np.array_equal(out.numpy(), stored.numpy().astype(np.uint32).view(np.float32))


def test_vllm_ascends_own_config_without_quantize_is_read_by_its_description(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), made("w8a8", "vllm_ascend"), "w8a8", "vllm_ascend")
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIG.to_json()))
    with open_checkpoint(tmp_path / "c", read_config(tmp_path / "c")) as opened:
        assert opened.quantisation == Quantisation("w8a8", LINEARS, stored=True)


Change = Callable[[QuantisedTensors, dict[str, object]], object]

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
        "not part of this model: model.norm.module.bias",
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
    description.write_text("[]")
    with pytest.raises(UserError, match="must hold an object that maps tensor names"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))
    description.unlink()
    with pytest.raises(UserError, match=r"quantize is 'w8a8', but quant_model_description_w8a8.json is missing"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))
    (tmp_path / "c" / "config.json").write_text(json.dumps(CONFIG.to_json()))
    with pytest.raises(UserError, match=r'has the dtype I8, but config.json .* Add "quantize"'):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))


def test_a_weight_offset_is_refused(tmp_path: Path) -> None:
    checkpoint = made("w8a16")
    checkpoint.tensors[f"{Q}.weight_offset"][0] = 3
    write_checkpoint(tmp_path / "c", CONFIG.to_json(), checkpoint, "w8a16")
    with pytest.raises(UserError, match="weight_offset is not 0: its weights are asymmetric"):
        open_checkpoint(tmp_path / "c", read_config(tmp_path / "c"))
