"""The yardstick: transformers' Gemma as torchair lowers it, beside this project's graphs of the same model.

    python -m graph_model.ascend.naive

torchair cannot lower transformers' model with its caches (aten.index_copy has no converter) nor with its fused
attention, so what is compared runs with eager attention and without a cache: every token computes its whole sequence
again. Figures are per decoder layer, the difference of models of three and of two layers, on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from graph_model.ascend import standin
from graph_model.ascend.cost import estimate
from graph_model.ascend.ge_graph import GeGraph, read_graph
from graph_model.ascend.listing import count_nodes
from graph_model.ascend.lower import lower
from graph_model.ascend.soc import Soc, find_soc
from graph_model.backends.torchair import AscendOptions, kernel_passes
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_model.graph import Pages
from passes.manager import DEFAULT_PASSES, run_passes

BLOCK_SIZE = 64


@dataclass(frozen=True)
class LayerFigures:
    """Of one decoder layer: kernels (views not counted), and bytes of device memory read and written (estimated)."""

    kernels: int
    bytes: int


def naive_graph(config: GemmaConfig, tokens: int, dtype: torch.dtype) -> GeGraph:
    """transformers' model over one sequence, compiled by torchair as it is set by default; torch_npu must be loaded."""
    from torchair import CompilerConfig, get_compiler
    from torchair.npu_fx_compiler import _get_merged_decompositions
    from transformers import GemmaConfig as TransformersConfig
    from transformers import GemmaForCausalLM

    settings = TransformersConfig(**config.to_json(), attn_implementation="eager", use_cache=False)
    torchair_config = CompilerConfig()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("npu"):
            model = GemmaForCausalLM(settings).to(dtype).eval()
            token_ids, positions = (torch.zeros(1, tokens, dtype=torch.int64) for _ in range(2))
        names, weights = zip(*model.state_dict().items(), strict=True)

        def forward(*inputs: Tensor) -> Tensor:
            state = dict(zip(names, inputs[2:], strict=True))
            # The mask is given, as transformers makes it on the host by values that are not known here.
            hidden = torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype, device="npu").triu(1)
            arguments: dict[str, Any] = {"attention_mask": hidden[None, None], "position_ids": inputs[1]}
            output = torch.func.functional_call(model, state, (inputs[0],), arguments)
            logits: Tensor = output.logits
            return logits

        inputs = [token_ids, positions, *weights]
        decompositions = _get_merged_decompositions(torchair_config)
        module = make_fx(torch.func.functionalize(forward), decompositions, tracing_mode="fake")(*inputs)
        concrete = get_compiler(torchair_config)(module, inputs).runner
    return read_graph(concrete.graph._proto)


def own_graph(config: GemmaConfig, bucket: Bucket, dtype: torch.dtype, soc: Soc) -> GeGraph:
    """This project's graph of a step."""
    graph = capture(config, bucket, Pages(1024, BLOCK_SIZE), dtype)
    run_passes(graph, [*(cls() for cls in DEFAULT_PASSES), *kernel_passes(AscendOptions(soc, "exact"))])
    return lower(graph).graph


def per_layer(make: Callable[[GemmaConfig], GeGraph], config: GemmaConfig, soc: Soc) -> LayerFigures:
    """One decoder layer of the graphs that `make` makes."""
    graphs = [make(replace(config, num_hidden_layers=layers)) for layers in (3, 2)]
    kernels = [count_nodes(graph).compute for graph in graphs]
    moved = [estimate(graph, soc).total.bytes for graph in graphs]
    return LayerFigures(kernels[0] - kernels[1], moved[0] - moved[1])


def compare(config: GemmaConfig, tokens: int, dtype: torch.dtype, soc: Soc) -> dict[str, LayerFigures]:
    """Naive, and this project's prefill of `tokens` tokens and decode of one more."""
    prefill = Bucket("prefill", 1, tokens, 0)
    decode = Bucket("decode", 1, 1, tokens // BLOCK_SIZE)
    return {
        "naive": per_layer(lambda c: naive_graph(c, tokens, dtype), config, soc),
        "prefill": per_layer(lambda c: own_graph(c, prefill, dtype, soc), config, soc),
        "decode": per_layer(lambda c: own_graph(c, decode, dtype, soc), config, soc),
    }


def main() -> None:
    """Print the comparison for both sizes of Gemma on the 800I A2."""
    soc, tokens = find_soc("atlas_800i_a2"), 512
    with TemporaryDirectory() as folder:
        on_standin = standin.load(soc, Path(folder))
        if on_standin:
            print(standin.BANNER)
        print(f"per decoder layer on the {soc.product}, float16, {tokens} tokens; bytes are estimates")
        for name, config in (("2b", GEMMA_2B), ("7b", GEMMA_7B)):
            for what, figures in compare(config, tokens, torch.float16, soc).items():
                print(f"{name} {what:8} {figures.kernels:4} kernels {figures.bytes / 1e6:10.1f} MB")


if __name__ == "__main__":
    main()
