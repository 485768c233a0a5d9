"""Steps of Gemma written by hand with the chips' kernels, norm=exact, as a measure of the time to make a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families.definition import round_to_dtype
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.ops.tokens import NOT_FINITE, best_ids
from graph_gemma.passes.ascend.attention import CAUSAL_MASK_SIZE


class HandFused(torch.nn.Module):
    """Token ids to token ids; nodes and inputs as the passes leave them.

    On the A2 prefill, extend and decode; blocks are gathered in an extend step whose block_size is no multiple of 128.
    On the 300I DUO prefill and decode of a model with as many key heads as query heads, and decode of one with a single
    key head for many query heads, over gathered blocks.
    """

    def __init__(
        self, config: GemmaConfig, bucket: Bucket, cache_config: KVCacheConfig, dtype: torch.dtype, soc: Chip
    ) -> None:
        super().__init__()
        self.config, self.bucket, self.cache_config, self.dtype = config, bucket, cache_config, dtype
        self.duo = not soc.has("FusedInferAttentionScore")
        self.gathers = bucket.phase == "extend" and cache_config.block_size % 128 > 0
        if self.duo:
            self.gathers = config.num_key_value_heads < config.num_attention_heads
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        norm_dtype = torch.float32 if self.duo else dtype

        def weight(*shape: int, dtype: torch.dtype = dtype) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)

        self.embedding = weight(config.vocab_size, hidden)
        self.frequencies = weight(dim // 2, dtype=torch.float32)
        self.final = weight(hidden, dtype=norm_dtype)
        masked = bucket.phase != "decode" and not self.duo
        self.mask = weight(CAUSAL_MASK_SIZE, CAUSAL_MASK_SIZE, dtype=torch.bool) if masked else None
        self.layers = torch.nn.ModuleList()
        for _ in range(config.num_hidden_layers):
            layer = torch.nn.Module()
            layer.qkv = weight((heads + 2 * kv_heads) * dim, hidden)
            layer.o = weight(hidden, heads * dim)
            layer.gate_up = weight(2 * inner, hidden)
            layer.down = weight(hidden, inner)
            layer.first, layer.second = weight(hidden, dtype=norm_dtype), weight(hidden, dtype=norm_dtype)
            self.layers.append(layer)

    def forward(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, query_lens: Tensor, context_lens: Tensor,
        table: Tensor, *caches: Tensor,
    ) -> Tensor:  # fmt: skip
        config, (batch, tokens) = self.config, token_ids.shape
        dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        x = torch.nn.functional.embedding(token_ids, self.embedding)
        x = (x * round_to_dtype(config.embedding_scale, self.dtype)).reshape(batch * tokens, -1)
        angles = positions[:, :, None, None].float() * self.frequencies
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        slots = slots.reshape(-1, 1) if self.duo else slots.reshape(-1)
        shared = self.shared_on_duo(query_lens, context_lens, table) if self.duo else self.shared_on_a2(table)
        attend = self.attend_on_duo if self.duo else self.attend_on_a2
        linear = torch.ops.ascend.linear
        for index, layer in enumerate(self.layers):
            qkv = linear(self.norm(x, layer.first), layer.qkv)
            q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
            q = self.rotary(q.reshape(batch, tokens, heads, dim), cos, sin)
            k = self.rotary(k.reshape(batch, tokens, kv_heads, dim), cos, sin)
            v = v.reshape(batch, tokens, kv_heads, dim)
            attended = attend(q, k, v, caches[2 * index : 2 * index + 2], slots, query_lens, context_lens, *shared)
            if tokens > 1 and index == config.num_hidden_layers - 1:  # all that follows is of the last token
                x, attended = (self.last(t.reshape(batch, tokens, -1), query_lens) for t in (x, attended))
            x = x + linear(attended.reshape(x.shape[0], -1), layer.o)
            hidden = linear(self.norm(x, layer.second), layer.gate_up)
            x = x + linear(torch.ops.npu.npu_geglu(hidden, -1, 1, True)[0], layer.down)
        ids, finite = best_ids(linear(self.norm(x, self.final), self.embedding))
        return torch.where(finite, ids, NOT_FINITE).squeeze(-1)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.duo:
            return torch.ops.npu.npu_rms_norm(x.float(), weight, self.config.rms_norm_eps)[0].to(self.dtype)
        return torch.ops.ascend.gemma_rms_norm(x, weight, self.config.rms_norm_eps)

    def rotary(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not self.duo:
            return torch.ops.npu.npu_rotary_mul(x, cos, sin)
        half = self.config.head_dim // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def shared_on_a2(self, table: Tensor) -> list[Tensor]:
        """The block table as attention or the gathers take it."""
        return [table.reshape(-1) if self.gathers else table.int()]

    def shared_on_duo(self, query_lens: Tensor, context_lens: Tensor, table: Tensor) -> list[Tensor]:
        """What attention takes besides: a causal mask, a block table, or places of tokens and a mask of them."""
        tokens, size = self.bucket.chunk, self.cache_config.block_size
        if tokens > 1:
            positions = torch.arange(tokens)
            visible = torch.minimum(positions, (query_lens - 1)[:, None])
            return [(positions > visible[:, :, None])[:, None]]
        if not self.gathers:
            return [table.int()]
        positions, last = torch.arange(table.shape[1] * size), (context_lens - 1)[:, None]
        places = ((table * size)[:, :, None] + torch.arange(size)).reshape(table.shape[0], -1)
        return [places.gather(1, torch.minimum(positions, last)).reshape(-1), (positions > last)[:, None, None]]

    def attend_on_a2(
        self, q: Tensor, k: Tensor, v: Tensor, caches: tuple[Tensor, ...], slots: Tensor, query_lens: Tensor,
        context_lens: Tensor, table: Tensor,
    ) -> Tensor:  # fmt: skip
        config, size = self.config, self.cache_config.block_size
        kv_heads, dim = config.num_key_value_heads, config.head_dim
        new = (t.reshape(-1, kv_heads, dim) for t in (k, v))
        torch.ops.npu.npu_scatter_pa_kv_cache(*new, *caches, slots, cache_mode="Norm")
        fresh = self.bucket.phase == "prefill"
        options: dict[str, Any] = {"actual_seq_lengths_kv": query_lens if fresh else context_lens}
        if self.mask is not None:
            options |= {"atten_mask": self.mask, "actual_seq_lengths": query_lens, "sparse_mode": 3}
        if not fresh:
            k, v = (cache.view(self.cache_config.num_blocks, size, -1) for cache in caches)
            if self.gathers:
                k, v = (t.index_select(0, table).reshape(q.shape[0], -1, kv_heads, dim) for t in (k, v))
            else:
                options |= {"block_table": table, "block_size": size}
        return torch.ops.air.npu_fused_infer_attention_score(
            q, k, v, **options, num_heads=config.num_attention_heads, num_key_value_heads=kv_heads,
            scale=config.softmax_scale, input_layout="BSND",
        )[0]  # fmt: skip

    def attend_on_duo(
        self, q: Tensor, k: Tensor, v: Tensor, caches: tuple[Tensor, ...], slots: Tensor, query_lens: Tensor,
        context_lens: Tensor, *shared: Tensor,
    ) -> Tensor:  # fmt: skip
        config, cache_config, (batch, tokens, heads, dim) = self.config, self.cache_config, q.shape
        kv_heads, scale = config.num_key_value_heads, config.softmax_scale
        for new, cache in zip((k, v), caches, strict=True):
            torch.ops.npu.npu_scatter_nd_update_(cache, slots, new.reshape(-1, kv_heads * dim))
        if tokens > 1:
            q, k, v = (t.reshape(batch, tokens, -1) for t in (q, k, v))
            return torch.ops.npu.npu_prompt_flash_attention(
                q, k, v, atten_mask=shared[0], num_heads=heads, scale_value=scale, next_tokens=2**31 - 1,
                input_layout="BSH",
            )  # fmt: skip
        if not self.gathers:
            paged = (cache.view(cache_config.num_blocks, cache_config.block_size, -1) for cache in caches)
            return torch.ops.ascend.incre_flash_attention(
                q.reshape(batch, 1, -1), *paged, context_lens, block_table=shared[0], num_heads=heads,
                num_key_value_heads=kv_heads, scale=scale, input_layout="BSH", block_size=cache_config.block_size,
            )  # fmt: skip
        places, hidden = shared
        keys, values = (cache.index_select(0, places).reshape(batch, 1, -1, dim) for cache in caches)
        product = torch.ops.ascend.batch_matmul
        scores = product((q * scale).reshape(batch, 1, heads, dim), keys, True)
        return product(scores.float().masked_fill(hidden, -torch.inf).softmax(-1).to(self.dtype), values)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        index = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, index).squeeze(1)


def hand_fused(
    config: GemmaConfig, bucket: Bucket, cache_config: KVCacheConfig, dtype: torch.dtype, soc: Chip
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The exported graph of the step, and its fake inputs on device npu, parameters first."""
    with FakeTensorMode(), torch.device("npu"):
        model = HandFused(config, bucket, cache_config, dtype, soc)
        integers = [torch.zeros(bucket.batch, bucket.chunk, dtype=torch.int64) for _ in range(3)]
        integers += [torch.zeros(bucket.batch, dtype=torch.int64) for _ in range(2)]
        integers += [torch.zeros(bucket.batch, bucket.max_blocks_per_seq, dtype=torch.int64)]
        shape: tuple[int, ...] = (
            cache_config.num_blocks,
            cache_config.block_size,
            config.num_key_value_heads,
            config.head_dim,
        )
        if model.duo:
            shape = (shape[0] * shape[1], shape[2] * shape[3])
        caches = [torch.empty(shape, dtype=dtype) for _ in range(2 * config.num_hidden_layers)]
        program = torch.export.export(model, (*integers, *caches), strict=False)
    module = program.graph_module
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)  # asserts devices
    module.recompile()
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for name in program.graph_signature.inputs_to_parameters.values()]
    return module, [*weights, *integers, *caches]
