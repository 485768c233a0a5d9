"""A decode step of Gemma on the 800I A2 written by hand with the chip's kernels, to compare lowering times with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from graph_model.bucket import Bucket
from graph_model.config import GemmaConfig
from graph_model.gemma import round_to_dtype
from graph_model.graph import Pages


class HandFusedDecode(torch.nn.Module):
    """Token ids to token ids, norm=exact; nodes and inputs as the passes leave them."""

    def __init__(self, config: GemmaConfig, pages: Pages, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.pages, self.dtype = config, pages, dtype
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

        def weight(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)

        self.embedding = weight(config.vocab_size, hidden)
        self.frequencies = torch.nn.Parameter(torch.empty(dim // 2), requires_grad=False)
        self.final = weight(hidden)
        self.layers = torch.nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            layer = torch.nn.Module()
            layer.qkv = weight((heads + 2 * kv_heads) * dim, hidden)
            layer.o = weight(hidden, heads * dim)
            layer.gate_up = weight(2 * inner, hidden)
            layer.down = weight(hidden, inner)
            layer.first, layer.second = weight(hidden), weight(hidden)
            self.layers.append(layer)

    def forward(self, token_ids: Tensor, positions: Tensor, slots: Tensor, lengths: Tensor, table: Tensor,
                *caches: Tensor) -> Tensor:  # fmt: skip
        config, batch = self.config, token_ids.shape[0]
        dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
        eps = config.rms_norm_eps
        x = torch.nn.functional.embedding(token_ids, self.embedding)
        x = (x * round_to_dtype(config.embedding_scale, self.dtype)).reshape(batch, -1)
        angles = positions[:, :, None, None].float() * self.frequencies
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        table, slots = table.int(), slots.reshape(-1)
        norm = torch.ops.ascend.gemma_rms_norm
        linear = torch.ops.ascend.linear
        for index, layer in enumerate(self.layers):
            key_cache, value_cache = caches[2 * index], caches[2 * index + 1]
            q, k, v = linear(norm(x, layer.first, eps), layer.qkv).split(sizes, -1)
            q = torch.ops.npu.npu_rotary_mul(q.reshape(batch, 1, heads, dim), cos, sin)
            k = torch.ops.npu.npu_rotary_mul(k.reshape(batch, 1, kv_heads, dim), cos, sin)
            torch.ops.npu.npu_scatter_pa_kv_cache(
                k.reshape(batch, kv_heads, dim), v.reshape(batch, kv_heads, dim), key_cache, value_cache, slots,
                cache_mode="Norm",
            )  # fmt: skip
            blocks, size = self.pages.num_blocks, self.pages.block_size
            attended = torch.ops.air.npu_fused_infer_attention_score(
                q, key_cache.view(blocks, size, -1), value_cache.view(blocks, size, -1),
                actual_seq_lengths_kv=lengths, block_table=table, num_heads=heads, num_key_value_heads=kv_heads,
                scale=config.softmax_scale, input_layout="BSND", block_size=size,
            )[0]  # fmt: skip
            x = x + linear(attended.reshape(batch, -1), layer.o)
            hidden = linear(norm(x, layer.second, eps), layer.gate_up)
            x = x + linear(torch.ops.npu.npu_geglu(hidden, -1, 1, True)[0], layer.down)
        return linear(norm(x, self.final, eps), self.embedding).argmax(-1)


def hand_fused_decode(config: GemmaConfig, bucket: Bucket, pages: Pages, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """The exported graph of the step, and its fake inputs on device npu, parameters first."""
    mode = FakeTensorMode()
    with mode, torch.device("npu"):
        model = HandFusedDecode(config, pages, dtype)
        integers = [torch.zeros(bucket.batch, n, dtype=torch.int64) for n in (1, 1, 1)]
        integers += [torch.zeros(bucket.batch, dtype=torch.int64)]
        integers += [torch.zeros(bucket.batch, bucket.table_width, dtype=torch.int64)]
        shape = (pages.num_blocks, pages.block_size, config.num_key_value_heads, config.head_dim)
        caches = [torch.empty(shape, dtype=dtype) for _ in range(2 * config.num_hidden_layers)]
        program = torch.export.export(model, (*integers, *caches), strict=False)
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for name in program.graph_signature.inputs_to_parameters.values()]
    return program.graph_module, [*weights, *integers, *caches]
