"""Attention: FusedInferAttentionScore, IncreFlashAttention and PromptFlashAttention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, Node, TensorDesc, byte_count, element_count
from graph_gemma.graph_model.ascend.ops.op import AscendOp, ge, shape_of
from graph_gemma.graph_model.ascend.work import SOFTMAX, Operands, Work
from graph_gemma.graph_model.bucket import BLOCK_SIZES
from graph_gemma.graph_model.chips.chip import Chip, Limits
from graph_gemma.graph_model.errors import UserError

# What these ops take on every chip; sizes are in elements, blocks in tokens.
HEAD_DIM_ALIGNMENT = 16
INT8_HEAD_DIM_ALIGNMENT = 32  # with an int8 cache
MAX_BLOCK_SIZE = 512
# sparse_mode of causal attention, aligned to the last query and the last key: all earlier keys, or pre_tokens of them.
CAUSAL, BAND = 3, 4
_UNLIMITED = 2147483647
_OPS = ("FusedInferAttentionScore", "IncreFlashAttention", "PromptFlashAttention")


def max_head_dim(chip: Chip) -> int:
    """The largest head_dim that all of the chip's attention ops take."""
    limits = (chip.limits(op).max_head_dim for op in _OPS if chip.has(op))
    return min(limit for limit in limits if limit is not None)


def check_block_size(chip: Chip, block_size: int, *, query_tokens: int = 1, int8_cache: bool = False) -> None:
    """Raise UserError unless paged attention of `query_tokens` per row takes the block size.

    With one query token: multiples of 16 (32 for an int8 cache) up to 512; with more: multiples of 128 up to 512, on
    the A2 only. The sizes that the error names are those of BLOCK_SIZES among them.
    """
    step = 128 if query_tokens > 1 else 32 if int8_cache else 16
    if block_size <= 0 or block_size % step or block_size > MAX_BLOCK_SIZE:
        what = "one query token" if query_tokens == 1 else "several query tokens"
        sizes = [str(size) for size in BLOCK_SIZES if size % step == 0]
        raise UserError(
            f"soc={chip.name}: block_size is {block_size}; paged attention of {what} takes multiples of {step} "
            f"up to {MAX_BLOCK_SIZE}{' with an int8 cache' if int8_cache and query_tokens == 1 else ''}. "
            f"Set block_size{'=' if len(sizes) == 1 else ' to one of '}{', '.join(sizes)}."
        )


def _fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    num_key_value_heads: int = 0,
    scale: float = 1.0,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    pre_tokens: int = _UNLIMITED,
    next_tokens: int = _UNLIMITED,
    block_size: int = 0,
    key_antiquant_scale: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
) -> tuple[Tensor, Tensor]:
    assert input_layout == "BSND" or (input_layout == "BNSD" and block_table is not None)
    if input_layout == "BNSD":
        query = query.transpose(1, 2)
    batch, tokens = query.shape[:2]
    if block_table is not None:
        assert key.shape[-2] == block_size
        table = block_table.long()
        if key.dim() == 4:  # [blocks, kv_heads, block_size, head_dim]
            key, value = (cache[table].transpose(2, 3).flatten(1, 2) for cache in (key, value))
        else:
            key, value = (cache[table].flatten(1, 2).unflatten(-1, (num_key_value_heads, -1)) for cache in (key, value))
        if key_antiquant_scale is not None and value_antiquant_scale is not None:
            assert key_antiquant_mode == value_antiquant_mode == 5
            scales = (key_antiquant_scale, value_antiquant_scale)
            factors = (by_head[table].transpose(2, 3).flatten(1, 2)[..., None] for by_head in scales)
            pairs = zip((key, value), factors, strict=True)
            key, value = ((x.float() * factor).to(query.dtype) for x, factor in pairs)
    kv_lens = _or_full(actual_seq_lengths_kv, batch, key.shape[1])
    q_lens = _or_full(actual_seq_lengths, batch, tokens)
    keys = torch.arange(key.shape[1])
    hidden = (keys >= kv_lens[:, None])[:, None, :].expand(-1, tokens, -1)
    rows = torch.arange(tokens)
    distance = keys - (rows + (kv_lens - q_lens)[:, None])[:, :, None]  # of a key from the query's own
    if sparse_mode in (CAUSAL, BAND):
        assert atten_mask is not None
        assert tokens > 1, "with one query token the op ignores sparse_mode"
        before, after = (pre_tokens, next_tokens) if sparse_mode == BAND else (_UNLIMITED, 0)
        hidden = hidden | (distance > after) | (distance < -before)
    elif atten_mask is not None:
        hidden = hidden | atten_mask[:, 0, :, : key.shape[1]]
    out = _attend(query, key, value, hidden, scale)
    out = torch.where((rows < q_lens[:, None])[:, :, None, None], out, 0)
    return out.transpose(1, 2) if input_layout == "BNSD" else out, query.new_empty(0, dtype=torch.float32)


def _fake_incre_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, actual_seq_lengths: Tensor, **options: Any
) -> Tensor:
    """One query token per row; layouts and paging as in the GE op IncreFlashAttention."""
    torch._check(actual_seq_lengths.dtype == torch.int64, lambda: "incre_flash_attention: lengths must be int64")
    return torch.empty_like(query)


def _convert_incre_flash_attention(
    query: Any, key: Any, value: Any, actual_seq_lengths: Any, *, scale: float, **options: Any
) -> Any:
    for_quantized_caches = ("dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2")
    unused = ("pse_shift", "antiquant_scale", "antiquant_offset", "kv_padding_size", *for_quantized_caches)
    options = {"atten_mask": None, "block_table": None, "input_layout": "BSH", "block_size": 0, **options}
    lengths = {"actual_seq_lengths": actual_seq_lengths}
    return ge().IncreFlashAttention(
        query, [key], [value], **lengths, scale_value=scale, **options, **dict.fromkeys(unused)
    )


def _incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    actual_seq_lengths: Tensor,
    *,
    atten_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    input_layout: str = "BSH",
    block_size: int = 0,
) -> Tensor:
    assert input_layout == "BSH"
    if block_table is not None:
        assert key.shape[1] == block_size
        key, value = (cache[block_table.long()].flatten(1, 2) for cache in (key, value))
    hidden = (torch.arange(key.shape[1]) >= actual_seq_lengths[:, None])[:, None, :]
    if atten_mask is not None:
        hidden = hidden | atten_mask[:, 0]
    key, value = (x.unflatten(-1, (num_key_value_heads, -1)) for x in (key, value))
    return _attend(query.unflatten(-1, (num_heads, -1)), key, value, hidden, scale).flatten(2)


def _prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    next_tokens: int = 0,
    **unused: None,
) -> Tensor:
    assert (input_layout, num_key_value_heads) == ("BSH", 0)
    assert next_tokens >= key.shape[1], "the mask is all there is"
    query, key, value = (x.unflatten(-1, (num_heads, -1)) for x in (query, key, value))
    return _attend(query, key, value, atten_mask[:, 0], scale_value).flatten(2)


def _or_full(lens: Tensor | None, batch: int, full: int) -> Tensor:
    return torch.full((batch,), full) if lens is None else lens


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """query [batch, tokens, heads, head_dim], key and value [batch, keys, kv_heads, head_dim], hidden bool
    [batch, tokens, keys] -> like query. What is hidden from all queries of a row may hold anything, NaN included."""
    unused = hidden.all(1)[:, :, None, None]
    group = query.shape[2] // key.shape[2]
    key, value = (torch.where(unused, 0, x).float().repeat_interleave(group, 2) for x in (key, value))
    scores = torch.einsum("btnd,bsnd->bnts", query.float(), key) * scale
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).nan_to_num()
    return torch.einsum("bnts,bsnd->btnd", weights, value).to(query.dtype)


def _check_fused_infer(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    query = shape_of(inputs, "query")
    layout = node.attrs.get("input_layout", "BSH")
    head_dim = _head_dim(query, layout, node.attrs["num_heads"], chip.limits(node.type))
    tokens = query[2 if layout == "BNSD" else 1]
    ignored = [name for name in ("sparse_mode", "pre_tokens", "next_tokens") if name in node.attrs]
    if tokens == 1 and any(node.attrs[name] not in (0, _UNLIMITED) for name in ignored):
        values = ", ".join(f"{name}={node.attrs[name]}" for name in ignored)
        raise GeGraphError(f"{values} with one query token, for which the op ignores them")
    if "block_table" in inputs:
        _check_mask_of_blocks(node, inputs)
        int8 = inputs["key0"].dtype is torch.int8
        if int8 and tokens > 1:
            raise GeGraphError("a paged int8 cache serves one query token only")
        if int8 and head_dim % INT8_HEAD_DIM_ALIGNMENT:
            raise GeGraphError(f"head_dim {head_dim}; with an int8 cache it is a multiple of 32")
        check_block_size(chip, node.attrs["block_size"], query_tokens=tokens, int8_cache=int8)


def _check_incre(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    query, limits = shape_of(inputs, "query"), chip.limits(node.type)
    heads, kv_heads = node.attrs["num_heads"], node.attrs.get("num_key_value_heads", 1) or node.attrs["num_heads"]
    head_dim = _head_dim(query, node.attrs.get("input_layout", "BSH"), heads, limits)
    if "block_table" in inputs:
        _check_mask_of_blocks(node, inputs)
        check_block_size(chip, node.attrs["block_size"])
    if limits.max_grouped_head_dim is not None and heads != kv_heads and head_dim > limits.max_grouped_head_dim:
        raise GeGraphError(f"grouped heads need head_dim <= {limits.max_grouped_head_dim}, it is {head_dim}")
    if limits.max_rows is not None and query[0] > limits.max_rows:
        raise GeGraphError(f"{query[0]} rows; the limit is {limits.max_rows}")


def _check_mask_of_blocks(node: Node, inputs: dict[str, TensorDesc]) -> None:
    """A whole mask has a place for each token that the block table can name."""
    if "atten_mask" not in inputs or node.attrs.get("sparse_mode", 0) in (CAUSAL, BAND):
        return
    width = shape_of(inputs, "block_table")[1] * node.attrs["block_size"]
    if shape_of(inputs, "atten_mask")[-1] < width:
        found = shape_of(inputs, "atten_mask")[-1]
        raise GeGraphError(f"a mask of {found} keys, where the block table names blocks of {width}")


def _check_prompt(node: Node, inputs: dict[str, TensorDesc], chip: Chip) -> None:
    heads, limits = node.attrs["num_heads"], chip.limits(node.type)
    _head_dim(shape_of(inputs, "query"), node.attrs.get("input_layout", "BSH"), heads, limits)
    if limits.max_grouped_head_dim == 0 and (node.attrs.get("num_key_value_heads", 1) or heads) != heads:
        raise GeGraphError("PromptFlashAttention takes as many key heads as query heads here")
    lengths = {"actual_seq_lengths", "actual_seq_lengths_kv"} & inputs.keys()
    if limits.mask_only and (lengths or node.attrs.get("sparse_mode", 0)):
        raise GeGraphError("PromptFlashAttention takes sparse_mode 0 and no lengths here")


def _head_dim(query: tuple[int, ...], layout: str, heads: int, limits: Limits) -> int:
    if layout not in ("BSH", "BSND", "BNSD"):
        raise GeGraphError(f"input_layout {layout}")
    head_dim = query[-1] // heads if layout == "BSH" else query[-1]
    if head_dim % HEAD_DIM_ALIGNMENT or head_dim > (limits.max_head_dim or head_dim):
        raise GeGraphError(f"head_dim {head_dim}; it takes multiples of 16 up to {limits.max_head_dim}")
    return head_dim


def _work(node: Node, operands: Operands, context_length: int | None) -> Work:
    """Keys and values are read once per row, up to its context or as far as its window reaches; a causal mask hides
    half of a chunk from itself."""
    query, key = operands["query"], operands["key"]
    assert query.shape is not None
    assert key.shape is not None
    heads_first = node.attrs.get("input_layout", "BSH") == "BNSD"
    rows, tokens = query.shape[0], query.shape[2 if heads_first else 1]
    heads = node.attrs["num_heads"]
    paged = "block_table" in operands
    if paged:
        table = operands["block_table"].shape
        assert table is not None
        capacity = table[1] * node.attrs["block_size"]
        held = key.shape[0] * node.attrs["block_size"]
    else:
        capacity = key.shape[2 if heads_first else 1]
        held = rows * capacity
    knows_lengths = any(name in operands for name in ("actual_seq_lengths_kv", "actual_seq_lengths"))
    context = min(context_length, capacity) if context_length is not None and knows_lengths else capacity
    of_cache = ("key", "key0", "value", "value0", "key_antiquant_scale", "value_antiquant_scale")
    cache_bytes = sum(byte_count(operands[name]) for name in of_cache if name in operands) * rows * context // held

    sparse = node.attrs.get("sparse_mode", 0)
    # Keys that a query sees, itself included; the first tokens of a sequence see fewer.
    window = node.attrs["pre_tokens"] + 1 if sparse == BAND else context
    cache_bytes = cache_bytes * min(context, tokens + window - 1) // max(context, 1)
    read = operands.bytes_read(*of_cache, "atten_mask") + cache_bytes
    seen = tokens * context
    if "atten_mask" in operands:
        mask = byte_count(operands["atten_mask"])
        template = sparse in (CAUSAL, BAND)  # of which the diagonal is read
        read += min(mask, tokens * tokens) if template else mask
        if template and context >= tokens:
            seen = sum(min(position + 1, window) for position in range(context - tokens, context))
    scores = rows * heads * seen
    head_dim = element_count(query) // (rows * tokens * heads)
    return Work(read, operands.bytes_written(), 4 * scores * head_dim, scores * SOFTMAX, query.dtype)


OPS = (
    # torchair's op, whose lengths are tensors.
    AscendOp(
        "air::npu_fused_infer_attention_score",
        "FusedInferAttentionScore",
        cpu=_fused_infer_attention_score,
        check=_check_fused_infer,
        work=_work,
        carries={"softmax_scale": ("scale", "scale")},
    ),
    AscendOp(
        "ascend::incre_flash_attention",
        "IncreFlashAttention",
        schema="(Tensor query, Tensor key, Tensor value, Tensor actual_seq_lengths, *, Tensor? atten_mask=None, "
        "Tensor? block_table=None, int num_heads, int num_key_value_heads, float scale, "
        'str input_layout="BSH", int block_size=0) -> Tensor',
        fake=_fake_incre_flash_attention,
        convert=_convert_incre_flash_attention,
        cpu=_incre_flash_attention,
        check=_check_incre,
        work=_work,
        carries={"softmax_scale": ("scale", "scale_value")},
    ),
    AscendOp(
        "npu::npu_prompt_flash_attention",
        "PromptFlashAttention",
        cpu=_prompt_flash_attention,
        check=_check_prompt,
        work=_work,
        carries={"softmax_scale": ("scale_value", "scale_value")},
    ),
)
