"""Training is deterministic, weighs tokens as the documents say, and saves whole checkpoints or nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.families import family_of
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.training import train
from graph_gemma.runners.demo.training.documents import (
    chat_documents,
    exercise_documents,
    first_exercise_documents,
    item_documents,
    story_documents,
)
from graph_gemma.runners.demo.training.evaluate import load_model


def test_shipped_config_is_the_one_that_training_writes() -> None:
    assert read_config(CHECKPOINT_DIR) == train.CONFIG


@pytest.mark.slow
def test_shipped_tokenizer_is_the_one_that_training_makes(tokenizer: Tokenizer) -> None:
    trained = train.train_tokenizer(train.tokenizer_texts(0), train.CONFIG.vocab_size)
    assert trained.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "source", [item_documents, first_exercise_documents, exercise_documents, story_documents, chat_documents]
)
def test_pieces_are_tokenized_as_the_whole_text_is(source, tokenizer: Tokenizer) -> None:
    for document in islice(source(5), 20):
        ids, weights = train.encode_document(tokenizer, document)
        assert ids == tokenizer.encode("".join(piece.text for piece in document)).ids
        assert ids[-1] == train.EOS_ID
        assert len(weights) == len(ids)
        assert weights[0] == 0


def test_answers_weigh_more_than_passages(tokenizer: Tokenizer) -> None:
    ids, weights = train.encode_document(tokenizer, next(item_documents(0)))
    assert tokenizer.decode([ids[-2]]) in (" yes", " no")
    assert weights[-2] > 10 * weights[1]


def test_rows_are_padded_with_weight_nought(tokenizer: Tokenizer) -> None:
    ids, weights = train.document_rows(tokenizer, item_documents(0), 4, 90)
    expected = [train.encode_document(tokenizer, d) for d in islice(item_documents(0), 4)]
    for row, (row_ids, row_weights) in enumerate(expected):
        assert ids[row].tolist() == row_ids + [0] * (90 - len(row_ids))
        assert weights[row].tolist() == pytest.approx(row_weights + [0.0] * (90 - len(row_ids)))


def test_full_rows_hold_whole_documents_one_after_the_other(tokenizer: Tokenizer) -> None:
    ids, weights = train.fill_rows(tokenizer, story_documents(0), 1, 300)
    expected = [i for d in islice(story_documents(0), 5) for i in train.encode_document(tokenizer, d)[0]]
    assert ids[0].tolist() == expected[:300]
    assert weights.shape == (1, 300)


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [train.schedule(step, 1000) for step in range(1000)]
    peak = train.WARMUP_STEPS
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(0.02)
    assert max(factors) == pytest.approx(1)


def test_two_steps_are_deterministic_and_save_as_bfloat16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = (train.train_model(tokenizer, 2, 3, use_compile=False) for _ in range(2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    train.save_checkpoint(first, tokenizer, tmp_path / "checkpoint")
    loaded = load_model(tmp_path / "checkpoint")
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter.bfloat16().float(), loaded.get_parameter(name)), name
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_the_old_checkpoint_only(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "config.json").write_text("old")
    monkeypatch.setattr(train, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        train.save_checkpoint(family_of(train.CONFIG).model(), tokenizer, target)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "config.json").read_text() == "old"
