"""Masks of fused attention: what sparse_mode, a mask and a band hide from a query."""

from __future__ import annotations

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.checks import require, require_dtype

UNLIMITED = 2147483647
# sparse_mode: causal, and the band of pre_tokens and next_tokens; both aligned to the last query and the last key.
CAUSAL, BAND = 3, 4
# They take the causal mask in this fixed, compressed form.
CAUSAL_MASK_SIZE = 2048


def read_mask(mask: Tensor, sparse_mode: int, batch: int, tokens: int, keys: int) -> Tensor:
    """The mask as bool [batch or 1, tokens, keys], or the checked triangle of sparse_mode 3 and 4."""
    require_dtype("atten_mask", mask, torch.bool, torch.int8, torch.uint8)
    if sparse_mode != 0:
        size = CAUSAL_MASK_SIZE
        require(mask.shape[-2:] == (size, size) and mask.numel() == size * size, f"mask {tuple(mask.shape)}")
        mask = mask.view(size, size)
        # The kernel reads tiles around the diagonal and takes the rest for granted.
        diagonals = not bool(mask.diagonal(0).any()) and bool(mask.diagonal(1).all())
        corners = bool(mask[0, 1:].all()) and not bool(mask[-1].any())
        require(diagonals and corners, "the mask is not the causal triangle")
        return mask
    mask = mask.bool()
    shape = mask.shape if mask.dim() != 4 else mask.shape[:1] + mask.shape[2:]
    require(mask.dim() != 4 or mask.shape[1] == 1, f"mask {tuple(mask.shape)}: one mask for all heads")
    mask = mask.reshape(shape if len(shape) == 3 else (1, *shape))
    if mask.dim() == 3 and mask.shape[0] == 1 and mask.shape[1] == batch and tokens == 1 and batch > 1:
        mask = mask.transpose(0, 1)  # one query token: [batch, keys]
    require(mask.shape[0] in (1, batch), f"mask of {mask.shape[0]} rows for {batch}")
    require(mask.shape[1] >= tokens and mask.shape[2] >= keys, f"mask {tuple(mask.shape)} for {tokens} x {keys}")
    return mask


def hidden_keys(
    mask: Tensor | None, sparse_mode: int, row: int, q_len: int, kv_len: int, band: tuple[int, int]
) -> Tensor | None:
    """What query i of a row may not see: bool [q_len, kv_len]; None: it sees everything."""
    if mask is None:
        return None
    if sparse_mode in (CAUSAL, BAND):
        if q_len > kv_len:
            raise GeGraphError(f"{q_len} query tokens over {kv_len} keys: the first would see nothing")
        before, after = band if sparse_mode == BAND else (UNLIMITED, 0)
        require(before >= 0 and after >= 0, f"a band from {-before} to {after}; the interpreter knows 0 and above")
        own = torch.arange(kv_len - q_len, kv_len)[:, None]
        return (torch.arange(kv_len) > own + after) | (torch.arange(kv_len) < own - before)
    hidden = mask[row if mask.shape[0] > 1 else 0, :q_len, :kv_len]
    before, after = band
    if before < kv_len or after < kv_len:
        distance = torch.arange(kv_len) - torch.arange(q_len)[:, None]
        hidden = hidden | (distance > after) | (distance < -before)
    if bool(hidden.all(-1).any()):
        raise GeGraphError("the mask hides every key from a query: its result is undefined on the chip")
    return hidden
