"""The engine as the harness's LM: generation, rolling log-likelihoods and chat are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS
from support.tokenizers import BOS, ids_of, make_tokenizer

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from graph_gemma.runners.evaluation.lm import GraphGemmaLM

CONFIG = TINY_CONFIGS["grouped_kv_heads"]
MAX_LENGTH = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Ours and transformers'."""
    directory = tmp_path_factory.mktemp("checkpoint")
    reference = make_checkpoint(directory / "model", CONFIG)
    make_tokenizer(directory / "model", size=CONFIG.vocab_size)
    settings = {"backend": "eager", "max_seq_len": MAX_LENGTH, "block_size": 16, "cache_dir": directory / "cache"}
    lm = GraphGemmaLM(batch_size=1, device="cpu", **{"model.path": directory / "model"}, **settings)
    yield lm, reference
    lm.llm.close()


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]  # type: ignore[arg-type]


@torch.no_grad()
def greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    begin, ids = len(ids), list(ids)
    while len(ids) < begin + count and (len(ids) == begin or ids[-1] != CONFIG.eos_token_ids[0]):
        ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[begin:]


def test_generation_stops_and_cuts_as_asked(models: tuple[Any, Any]) -> None:
    lm, reference = models
    decode = lm.tokenizer.decode
    short, long = "is it so?", "and so on, " * 12
    ids = [BOS, *ids_of(short)]
    answer = decode(greedy(reference, ids, 24), skip_special_tokens=True)
    stop = answer[6:8]
    assert stop.strip(), "the checkpoint's answer has something to stop at"
    # A context that is too long loses its beginning: 64 - 10 tokens are left.
    kept = ids_of(long)[-(MAX_LENGTH - 10) :]
    found = lm.generate_until(
        requests(
            "generate_until",
            (short, {"until": [], "max_gen_toks": 24, "do_sample": False}),
            (short, {"until": [stop, "never"], "max_gen_toks": 24}),
            (short, {"until": stop, "max_new_tokens": 5, "temperature": 0.0}),
            (long, {"until": [], "max_gen_toks": 10}),
        ),
        disable_tqdm=True,
    )
    assert found == [
        answer,
        answer[: answer.index(stop)],
        decode(greedy(reference, ids, 5), skip_special_tokens=True).partition(stop)[0],
        decode(greedy(reference, kept, 10), skip_special_tokens=True),
    ]


def test_sampling_is_asked_for_by_do_sample_or_a_temperature(models: tuple[Any, Any]) -> None:
    lm, _ = models
    options = [{"do_sample": True}, {"temperature": 1.0}, {"temperature": 1.0}, {"do_sample": False}, {}]
    arguments = [("is it so?", {"until": [], "max_gen_toks": 24, **option}) for option in options]
    first, second, third, *greedily = lm.generate_until(requests("generate_until", *arguments), disable_tqdm=True)
    assert greedily[0] == greedily[1]
    assert len({first, second, third, greedily[0]}) == 4, "repeats of a question have seeds of their own"


@torch.no_grad()
def test_rolling_log_likelihoods_predict_every_token_once(models: tuple[Any, Any]) -> None:
    lm, reference = models
    texts = ["short.", "one two three, " * 10]
    for text, total in zip(texts, lm.loglikelihood_rolling(requests("x", *((text,) for text in texts))), strict=True):
        # The tokenizer puts <bos> before the text, and the harness a prefix of its own before that.
        ids = [BOS, *lm.tok_encode(text)]
        expected = 0.0
        for first in range(1, len(ids), MAX_LENGTH - 1):
            end = min(first + MAX_LENGTH - 1, len(ids))
            window = ids[max(0, end - MAX_LENGTH) : end]
            rows = reference(torch.tensor([window[:-1]])).logits[0].log_softmax(-1)
            chosen = rows.gather(-1, torch.tensor(window[1:])[:, None])[:, 0]
            expected += float(chosen[-(end - first) :].sum())
        assert total == pytest.approx(expected, abs=1e-3 * len(ids) / 10)


def test_choices_of_a_question_share_its_context(models: tuple[Any, Any]) -> None:
    lm, _ = models
    context = "the same long context " * 2
    before = lm.llm.engine.statistics.cached_prompt_tokens
    lm.loglikelihood(requests("loglikelihood", *((context, choice) for choice in (" yes", " no", " maybe"))))
    blocks = (1 + len(context)) // 16
    assert lm.llm.engine.statistics.cached_prompt_tokens - before == 2 * 16 * blocks


def test_chat(models: tuple[Any, Any]) -> None:
    lm, _ = models
    history = [{"role": "user", "content": "is it so?"}]
    assert lm.apply_chat_template(history) == "<bos><user>is it so?</user><model>"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "<bos><user>is it so?</user>"
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    # The template writes <bos> itself, so that it must not come twice.
    assert lm.tok_encode(lm.apply_chat_template(history)).count(BOS) == 1
