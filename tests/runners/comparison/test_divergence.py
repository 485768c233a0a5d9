"""KL divergence, agreement and the rule, against torch and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.comparison.divergence import compare, kl_divergence


def logprobs(rows: int, seed: int) -> np.ndarray:
    return torch.randn(rows, 50, generator=torch.manual_seed(seed)).log_softmax(-1).numpy()


def test_kl_divergence_is_torchs() -> None:
    a, b = logprobs(9, 1), logprobs(9, 2)
    expected = torch.nn.functional.kl_div(
        torch.tensor(b).double(), torch.tensor(a).double(), reduction="none", log_target=True
    ).sum(-1)
    np.testing.assert_allclose(kl_divergence(a, b), expected.numpy(), rtol=1e-5)
    assert kl_divergence(a, a).max() == 0.0


def test_the_first_divergence_is_found() -> None:
    a = logprobs(10, 3)
    b = a.copy()
    second = a[6].argsort()[-2]
    b[6, second] = 0.0  # place 2 of the second text
    b[8, a[8].argsort()[-3]] = 0.0
    found = compare(a, b, [4, 6], [[1], [2]], [[1], [3]])
    assert (len(found.kl), found.num_texts, found.same_answers) == (10, 2, 1)
    assert found.agreement == pytest.approx(0.8)
    assert found.first == 6
    assert (found.texts.tolist(), found.steps.tolist()) == ([0] * 4 + [1] * 6, [0, 1, 2, 3, 0, 1, 2, 3, 4, 5])
    assert found.best[6].tolist() == [int(a[6].argmax()), int(second)]
    assert found.logprobs_a[6].tolist() == [a[6].max(), a[6, second]]
    assert found.logprobs_b[6, 1] == 0.0
    assert not found.passes
    assert compare(a, a, [4, 6], [[], []], [[], []]).first is None


def test_no_positions_and_different_vocabularies_are_refused() -> None:
    a = logprobs(2, 1)
    with pytest.raises(UserError, match="nothing to compare: the answers are empty"):
        compare(a[:0], a[:0], [0], [[]], [[]])
    with pytest.raises(UserError, match="a has a vocabulary of 50 tokens and b one of 40"):
        compare(a, a[:, :40], [2], [[]], [[]])


@pytest.mark.parametrize(
    ("kl", "passes"),
    [
        ([0.0] * 1000, True),
        ([2e-4] * 5 + [0.0] * 995, True),
        ([2e-4] * 6 + [0.0] * 994, False),  # 0.6 % above 1e-4
        ([2e-3] + [0.0] * 999, False),  # one above 1e-3
    ],
)
def test_the_rule(kl: list[float], passes: bool) -> None:
    found = compare(logprobs(1, 0), logprobs(1, 0), [1], [[]], [[]])
    found.kl = np.array(kl)
    assert found.passes is passes
