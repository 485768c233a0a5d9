"""The token rule: which differences between two choices of tokens rounding excuses."""

from __future__ import annotations

import torch
from torch import Tensor


def excused_steps(reference_logits: Tensor, tokens: Tensor) -> int:
    """How many of `tokens` [...] differ from the choice of `reference_logits` [..., vocab] and are excused.

    A step is excused in 16 bit if the reference's two best logits are no further apart than neighbouring numbers of
    the dtype at that magnitude, and the token is as close. Any other difference is an AssertionError.
    """
    best, choice = reference_logits.max(-1)
    differ = tokens != choice
    if not differ.any():
        return 0
    assert reference_logits.dtype != torch.float32, f"{int(differ.sum())} tokens differ in float32"
    chosen = reference_logits.gather(-1, tokens[..., None])[..., 0]
    second = reference_logits.topk(2).values[..., 1]
    magnitude = best.float().abs().clamp(min=torch.finfo(reference_logits.dtype).smallest_normal)
    step = torch.exp2(torch.floor(torch.log2(magnitude))) * torch.finfo(reference_logits.dtype).eps
    near = (best.float() - chosen.float() <= step) & (best.float() - second.float() <= step)
    wrong = differ & ~near
    assert not wrong.any(), f"{int(wrong.sum())} tokens differ by more than rounding, first at {wrong.nonzero()[0]}"
    return int(differ.sum())
