"""Largest values by layer are those of transformers' model, and the report says what float16 makes of them."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint, make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS

from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantizer import Float16Report, QuantizerOptions, largest_values, quantize_checkpoint
from graph_gemma.graph_model.quantizer.largest_values import LargestValues
from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT, HEADROOM, MOST_EXPONENT, recommended_exponent

CONFIGS = {"gemma": TINY_CONFIGS["attention_bias"], **LATER_CONFIGS}
SEQUENCES = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (20, 33, 7)]
# Modules of transformers' layers that read the residual stream, and those whose outputs are added to it.
READERS = {"gemma": ("input_layernorm", "post_attention_layernorm")}
ADDED = {"gemma": ("self_attn", "mlp")}
LATER_READERS = ("input_layernorm", "pre_feedforward_layernorm")
LATER_ADDED = ("post_attention_layernorm", "post_feedforward_layernorm")


def seen_in_transformers(name: str) -> list[tuple[float, float, float]]:
    """Of each layer of the random model: the largest of the stream, of branches, and of linears' inputs and outputs."""
    model = make_model(CONFIGS[name])
    seen: dict[tuple[int, str], float] = {}

    def note(index: int, kind: str, value: object) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        assert isinstance(tensor, torch.Tensor)
        seen[index, kind] = max(seen.get((index, kind), 0.0), tensor.abs().max().item())

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, args, out, i=index: note(i, "stream", out))
        for path in READERS.get(name, LATER_READERS):
            layer.get_submodule(path).register_forward_pre_hook(lambda _, args, i=index: note(i, "stream", args))
        for path in ADDED.get(name, LATER_ADDED):
            layer.get_submodule(path).register_forward_hook(lambda _, args, out, i=index: note(i, "branch", out))
        for path, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear) or path.endswith(("q_norm", "k_norm")):
                module.register_forward_pre_hook(lambda _, args, i=index: note(i, "other", args))
                added = name == "gemma" and path.endswith(("o_proj", "down_proj"))
                kind = "branch" if added else "other"
                module.register_forward_hook(lambda _, args, out, i=index, kind=kind: note(i, kind, out))
    with torch.no_grad():
        for ids in SEQUENCES:
            model(torch.tensor([ids]))
    layers = range(CONFIGS[name].num_hidden_layers)
    return [tuple(seen[index, kind] for kind in ("stream", "branch", "other")) for index in layers]  # type: ignore[misc]


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, CONFIGS[name])
    found = largest_values(tmp_path, SEQUENCES)
    expected = seen_in_transformers(name)
    assert len(found) == len(expected)
    for one, numbers in zip(found, expected, strict=True):
        assert (one.stream, one.branch, one.other) == pytest.approx(numbers, rel=1e-4)


def test_where_the_largest_value_is_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, CONFIGS["gemma3"])
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.down_proj.weight"] *= 1e4
    save_file(state, file, {"format": "pt"})
    assert largest_values(tmp_path, SEQUENCES)[1].other_at == "output of mlp.down_proj"


def test_quantizing_finds_the_same_values(tmp_path: Path) -> None:
    """Smoothing does not change the stream, and the report shows it as it was."""
    source = tmp_path / "source"
    make_checkpoint(source, CONFIGS["gemma3"])
    quantization = Quantization("w8a8", select_linears(CONFIGS["gemma3"], []), stored=True)
    report = quantize_checkpoint(source, tmp_path / "target", QuantizerOptions(quantization), SEQUENCES)
    assert report.float16 is not None
    assert report.float16.layers == largest_values(source, SEQUENCES)
    assert report.float16.exponent == DEFAULT_EXPONENT
    page = html.unescape((tmp_path / "target" / "quantization.html").read_text())
    assert all(sentence in page for sentence in report.float16.sentences())
    with pytest.raises(UserError, match="it is quantized already"):
        largest_values(tmp_path / "target", SEQUENCES)


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [(0.0, 5), (100.0, 5), (104_061.0, 5), (32 * 65504 / HEADROOM, 5), (140_000.0, 6), (1e6, 8), (1e9, MOST_EXPONENT)],
)
def test_the_recommended_exponent_leaves_room(largest: float, exponent: int) -> None:
    assert recommended_exponent(largest) == exponent


def sentences(name: str, exponent: int, *layers: tuple[float, float]) -> str:
    """What is said of layers with this stream and this largest other value."""
    found = [LargestValues(stream, stream / 2, other, "output of mlp.down_proj") for stream, other in layers]
    return "\n".join(Float16Report.of(family_of(CONFIGS[name]), found, exponent).sentences())


def test_a_stream_that_fits_needs_no_warning() -> None:
    said = sentences("gemma3", 5, (3000.0, 10.0), (104_061.0, 500.0))
    assert "reaches 104,061 in layer 1; float16 steps divide it by 32, to 3,252" in said
    assert "20.1 times below float16's largest number, 65,504" in said
    assert "Recommended: passes.scale_residual.exponent=5" in said
    assert "warning" not in said


def test_a_stream_that_overflows_names_layer_and_way_out() -> None:
    said = sentences("gemma2", 0, (3000.0, 10.0), (70_000.0, 10.0), (104_061.0, 500.0))
    assert "warning: the residual stream overflows in float16, first in layer 1. " in said
    assert "Give passes.scale_residual.exponent=5, dtype=bfloat16 or dtype=float32." in said
    assert "times below" not in said
    too_large = sentences("gemma2", 5, (1e9, 10.0))
    assert "first in layer 0. Give dtype=bfloat16 or dtype=float32." in too_large


def test_a_stream_of_gemma_1_cannot_be_scaled() -> None:
    said = sentences("gemma", 5, (70_000.0, 10.0))
    assert "Branches are added without a norm, so that nothing can be scaled. Give dtype=bfloat16 or" in said
    assert "passes.scale_residual" not in said
    assert "13.1 times below" in sentences("gemma", 5, (5000.0, 10.0))


def test_what_overflows_elsewhere_is_marked() -> None:
    said = sentences("gemma3", 5, (3000.0, 10.0), (3000.0, 70_000.0))
    assert "warning: the output of mlp.down_proj of layer 1 overflows in float16 with 70,000" in said
    layers = [LargestValues(3e6, 1.0, 70_000.0, "output of mlp.down_proj")]
    (row,) = Float16Report.of(family_of(CONFIGS["gemma3"]), layers, 5).rows()
    assert row == ("0", "3,000,000", "93,750 !", "1", "70,000 !", "output of mlp.down_proj")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config = replace(CONFIGS["gemma"], num_hidden_layers=2)
    make_checkpoint(tmp_path, config)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        largest_values(tmp_path, SEQUENCES)
