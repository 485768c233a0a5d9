"""The token rule: greedy tokens equal the reference's, but for ties within rounding, which are counted."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor

# Until 4.39 transformers rounded a norm's result before it was multiplied by 1 + w.
TRANSFORMERS_ROUNDS_ONCE = tuple(map(int, metadata.version("transformers").split(".")[:2])) >= (4, 39)
ROUNDS_ONCE = pytest.mark.skipif(not TRANSFORMERS_ROUNDS_ONCE, reason="this transformers' norm rounds twice in 16 bit")


@dataclass
class TieCounter:
    """Counts the tokens in 16 bit that were checked by the token rule, and the ties among them."""

    tokens: int = 0
    ties: int = 0

    def check(self, model: Any, prompt: list[int], answer: list[int]) -> None:
        """Check a greedy answer by the token rule (`check_greedy`), and count its tokens if the model has 16 bit."""
        ties = check_greedy(model, prompt, answer)
        if model.dtype != torch.float32:
            self.tokens += len(answer)
            self.ties += ties

    def check_share(self) -> None:
        """At most 1 % of all may be ties."""
        assert self.ties <= 0.01 * self.tokens, self


def count_ties(reference_logits: Tensor, tokens: Tensor, spacings: int = 1) -> int:
    """How many of `tokens` [...] differ from the choice of `reference_logits` [..., vocab] within rounding.

    A token is a tie in 16 bit if the reference's two best logits are no further apart than `spacings` times the
    distance of neighbouring numbers of the dtype at that magnitude, and the token is as close. Any other difference is
    an AssertionError.
    """
    best, choice = reference_logits.max(-1)
    differ = tokens != choice
    if not differ.any():
        return 0
    assert reference_logits.dtype != torch.float32, f"{int(differ.sum())} tokens differ in float32"
    chosen = reference_logits.gather(-1, tokens[..., None])[..., 0]
    second = reference_logits.topk(2).values[..., 1]
    magnitude = best.float().abs().clamp(min=torch.finfo(reference_logits.dtype).smallest_normal)
    step = torch.exp2(torch.floor(torch.log2(magnitude))) * torch.finfo(reference_logits.dtype).eps * spacings
    near = (best.float() - chosen.float() <= step) & (best.float() - second.float() <= step)
    wrong = differ & ~near
    assert not wrong.any(), f"{int(wrong.sum())} tokens differ by more than rounding, first at {wrong.nonzero()[0]}"
    return int(differ.sum())


def check_greedy(model: Any, prompt: list[int], answer: list[int]) -> int:
    """Check a greedy answer of ours by the token rule; returns how many of its tokens are ties.

    The transformers model sees the answer's own prefixes. Steps add in another order than whole sequences do, which
    may move each of the two logits by one spacing: two are allowed. Raises AssertionError for a wrong token.
    """
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return count_ties(logits, torch.tensor(answer), spacings=2)
