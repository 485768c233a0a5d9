"""Log-likelihoods through the engine: transformers' numbers, merged requests, windows that predict each token once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.evaluation.likelihood import Pair, loglikelihoods, windows
from graph_gemma.runners.llm import LLM

CONFIG = TINY_CONFIGS["one_kv_head"]


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, CONFIG.vocab_size, (count,), generator=torch.manual_seed(seed)).tolist()


def test_likelihoods_are_those_of_transformers(tmp_path: Path) -> None:
    reference = make_checkpoint(tmp_path / "model", CONFIG)
    context = random_ids(20, 1)
    with torch.no_grad():
        likeliest = int(reference(torch.tensor([context])).logits[0, -1].argmax())
    pairs: list[Pair] = [(context, [7]), (context, [likeliest]), (context, [likeliest, 9]), (context[:5], context[5:])]
    pairs.append((random_ids(100, 2), random_ids(30, 3)))  # loses its beginning: 80 tokens in all
    settings = [f"model.path={tmp_path / 'model'}", "backend=eager", "block_size=16", "max_prefill_tokens=64"]
    with LLM([*settings, "max_seq_len=80", f"cache_dir={tmp_path}"]) as llm:
        found = loglikelihoods(llm, pairs, "test", max_seq_len=80)
        # The first three need the same tokens or the same beginning: one request for the two that end alike.
        assert llm.engine.statistics.prompt_tokens == 20 + 21 + 19 + 79
        with pytest.raises(UserError, match="max_seq_len is 80"):
            loglikelihoods(llm, [([5], [6] * 80)], "test", max_seq_len=80)
    for (context, continuation), one in zip(pairs, found, strict=True):
        ids = (context + continuation)[-80:]
        with torch.no_grad():
            logits = reference(torch.tensor([ids])).logits[0, -len(continuation) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(continuation)[:, None])
        assert one.logprob == pytest.approx(chosen.sum().item(), abs=1e-3)
        assert one.is_greedy == (logits.argmax(-1).tolist() == continuation)
    assert [one.is_greedy for one in found[:2]] == [False, True]


@pytest.mark.parametrize(("count", "size"), [(2, 5), (6, 5), (7, 5), (11, 5), (23, 5)])
def test_windows_predict_every_token_once(count: int, size: int) -> None:
    ids = list(range(count))
    position = 1
    for context, continuation in windows(ids, size):
        assert continuation == ids[position : position + len(continuation)]
        assert context == ids[position - len(context) : position]
        assert len(context) >= 1
        assert len(context) + len(continuation) - 1 <= size
        position += len(continuation)
    assert position == count


def test_windows_are_those_of_lm_evaluation_harness() -> None:
    utils = pytest.importorskip("lm_eval.utils")
    for count in (1, 4, 5, 6, 17):
        ids = random_ids(count, count)
        expected = [
            utils.make_disjoint_window(pair)
            for pair in utils.get_rolling_token_windows(ids, prefix_token=2, max_seq_len=5, context_len=1)
        ]
        assert list(windows([2, *ids], 5)) == expected


@pytest.mark.parametrize("length", [2, 5, 6, 7, 30, 31])
def test_every_window_begins_with_bos(length: int) -> None:
    ids, size = [2, *range(10, 9 + length)], 6
    pairs = list(windows(ids, size, bos=2))
    assert [token for _, continuation in pairs for token in continuation] == ids[1:]
    for context, continuation in pairs:
        assert context[0] == 2
        assert len(context) + len(continuation) <= size + 1
        place = ids.index(continuation[0])
        assert context[1:] == ids[max(1, place - len(context) + 1) : place]
