"""A family's description agrees with the plain definition and with the graph that is captured of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.configs import TINY_CONFIGS
from support.graphs import CASES, FLOAT32, Case

from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.families import family_of

aten = torch.ops.aten
CONFIGS = {**TINY_CONFIGS, "2b": GEMMA_2B, "7b": GEMMA_7B}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tensors_are_those_of_the_plain_model(config: GemmaConfig) -> None:
    family = family_of(config)
    with torch.device("meta"):
        model = family.model()
    assert family.tensors == {name: tuple(p.shape) for name, p in model.named_parameters()}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(family.linears) == linears
    modules = dict(model.named_modules())
    for index, layer in enumerate(family.layers):
        assert {layer.attention.path, *(norm.path for norm in layer.norms)} <= {
            name.removeprefix(f"{family.layer_path(index)}.") for name in modules
        }
    assert family.final_norm.path in modules


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_counts_are_those_of_the_captured_graph(case: Case) -> None:
    calls = Counter(node.target for node in case.captured().calls())
    counts = family_of(case.config).counts
    assert counts.norms == calls[aten.rsqrt.default]
    assert counts.attentions == calls[aten.scaled_dot_product_attention.default]
    assert counts.rotations == calls[aten.neg.default]
    assert counts.rotary_bases == calls[aten.reciprocal.default]
    assert counts.gated_activations == calls[aten.gelu.default]
    assert counts.linears == calls[aten.linear.default]


def test_a_group_reads_one_tensor_which_its_norm_makes() -> None:
    graph = FLOAT32.captured()
    family = family_of(FLOAT32.config)
    for group in family.groups:
        linears = [node for node in graph.calls(aten.linear.default) if node.meta["layer"] in group.paths]
        assert [node.meta["layer"] for node in linears] == list(group.paths)
        (x,) = {node.args[0] for node in linears}
        assert x.meta["layer"] == group.norm or not group.norm
        assert set(x.users) == set(linears)
        assert [family.group_of(path) for path in group.paths] == [group] * len(group.paths)


def test_what_a_merged_linear_computes() -> None:
    family = family_of(FLOAT32.config)
    group = family.groups[0]
    assert family.linears_at(group.merged) == group.paths
    assert family.linears_at(group.paths[1]) == (group.paths[1],)
    assert family.linears_at("lm_head") == ("lm_head",)


def test_the_layer_of_a_module() -> None:
    family = family_of(FLOAT32.config)
    assert family.layer_index("model.layers.1.self_attn.q_proj") == 1
    assert family.layer_index("model.layers.1") == 1
    for path in ("model.layers.7.mlp", "model.norm", "", "lm_head", "model.layers.x"):
        assert family.layer_index(path) is None


@pytest.mark.parametrize("layers", [1, 2, 3, 18])
def test_few_layers_add_up_to_the_model(layers: int) -> None:
    few = family_of(replace(TINY_CONFIGS["untied_head"], num_hidden_layers=layers)).few_layers()
    (more,) = few.more
    assert (few.base.num_hidden_layers, more.config.num_hidden_layers) == (2, 3)
    assert few.base.num_hidden_layers + more.rest == layers


def test_a_family_is_described_once() -> None:
    assert family_of(replace(GEMMA_2B)) is family_of(GEMMA_2B)
