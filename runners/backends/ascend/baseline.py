"""Baseline: transformers' Gemma as torchair lowers it, without any pass of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from graph_gemma.graph_model.ascend.ge_graph import GeGraph, read_graph
from graph_gemma.graph_model.capture import default_dtype
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.backends.ascend.lower import lower_module

aten = torch.ops.aten


def naive_graph(config: GemmaConfig, tokens: int, dtype: torch.dtype) -> GeGraph:
    """transformers' model over one sequence of `tokens` tokens, token ids to logits, with torchair's own settings.

    On fake tensors; torch_npu must be loaded (`standin.load`). Attention is transformers' eager one and there is no
    cache: torchair has no converter for scaled_dot_product_attention, nor for the index_copy of transformers' static
    cache. So a decode step computes its whole sequence again. The causal mask is an input, as transformers makes it
    once on the host.
    """
    from torchair import CompilerConfig

    module = _exported(config, tokens, dtype)
    with FakeTensorMode():
        values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
        fakes = [torch.empty(value.shape, dtype=value.dtype, device="npu") for value in values]
        concrete, _ = lower_module(module, fakes, CompilerConfig())
    return read_graph(concrete.graph._proto)


def _exported(config: GemmaConfig, tokens: int, dtype: torch.dtype) -> fx.GraphModule:
    """The captured model, whose own tensors are made on the device."""
    from transformers import GemmaConfig as TransformersConfig
    from transformers import GemmaForCausalLM

    with FakeTensorMode(), default_dtype(dtype):
        settings = TransformersConfig(**config.to_json(), attn_implementation="eager")  # type: ignore[call-arg]
        model = _Logits(GemmaForCausalLM(settings).eval().requires_grad_(False))
        token_ids = torch.zeros((1, tokens), dtype=torch.int64)
        mask = torch.zeros((1, 1, tokens, tokens))
        program = torch.export.export(model, (token_ids, token_ids.clone(), mask), strict=False)
    module = program.graph_module
    for node in module.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)  # asserts devices
    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _on_device)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _on_device)
    module.recompile()
    return module


def _on_device(argument: Any) -> Any:
    return torch.device("npu") if isinstance(argument, torch.device) else argument


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        output = self.model(input_ids=token_ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits: Tensor = output.logits
        return logits
