"""The shipped tokenizer: any text survives it, the world's words are single tokens, transformers loads it."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.facts import PEOPLE, PLACES, THINGS
from graph_gemma.runners.demo.training.documents import chat_documents
from graph_gemma.runners.demo.training.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_files, train_tokenizer


@pytest.fixture(scope="module")
def auto_tokenizer():
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(CHECKPOINT_DIR)


@given(st.text().filter(lambda text: "<" not in text))
def test_any_text_round_trips(text: str) -> None:
    tokenizer = load_tokenizer(CHECKPOINT_DIR)
    ids = tokenizer.encode(text).ids
    assert ids[0] == SPECIAL_TOKENS.index("<bos>")
    assert tokenizer.decode(ids) == text


def test_text_that_only_looks_like_a_tag_round_trips(tokenizer: Tokenizer) -> None:
    text = "a <b> < c </s> <eo s> 1 < 2"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_vocabulary_has_the_size_of_the_config(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == read_config(CHECKPOINT_DIR).vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))


def test_special_tokens_have_the_ids_of_gemma(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(t) for t in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")]
    assert ids == [0, 1, 2, 3, 4, 5]
    config = read_config(CHECKPOINT_DIR)
    assert (config.bos_token_id, config.eos_token_ids) == (2, (1, 5))


def test_words_of_the_world_and_both_answers_are_single_tokens(tokenizer: Tokenizer) -> None:
    for word in ("yes", "no", *PEOPLE, *PLACES, *THINGS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) == 1, word


def test_auto_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, auto_tokenizer) -> None:
    for text in (
        "One day Clara took a red kite.",
        "naïve 漢字 🙂\n\tx",
        "",
        "<start_of_turn>user\nhello<end_of_turn>\n",
    ):
        assert auto_tokenizer(text)["input_ids"] == tokenizer.encode(text).ids
        assert auto_tokenizer.decode(auto_tokenizer(text)["input_ids"][1:]) == text
    assert len(auto_tokenizer) == tokenizer.get_vocab_size()
    assert (auto_tokenizer.pad_token_id, auto_tokenizer.eos_token_id, auto_tokenizer.bos_token_id) == (0, 1, 2)


def test_decoding_without_special_tokens_leaves_the_text(auto_tokenizer) -> None:
    ids = [*auto_tokenizer("Anna sang.")["input_ids"], 5, 1, 0]
    assert auto_tokenizer.decode(ids, skip_special_tokens=True) == "Anna sang."


def test_chat_template_writes_turns_as_they_were_trained(auto_tokenizer) -> None:
    for document in islice(chat_documents(0), 20):
        request, reply = document[0].text, document[1].text
        content = request.removeprefix("<start_of_turn>user\n").removesuffix("<end_of_turn>\n<start_of_turn>model\n")
        messages = [{"role": "user", "content": content}]
        prompt = auto_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == f"<bos>{request}"
        whole = auto_tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": reply}], tokenize=False)
        assert whole == f"<bos>{request}{reply}<end_of_turn>\n"


def test_chat_template_refuses_a_system_turn(auto_tokenizer) -> None:
    with pytest.raises(Exception, match="Only user and assistant turns"):
        auto_tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_merges_are_written_as_old_tokenizers_read_them() -> None:
    raw = json.loads((CHECKPOINT_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    assert raw["model"]["merges"]
    assert all(isinstance(merge, str) for merge in raw["model"]["merges"])


def test_training_fills_the_vocabulary_and_is_deterministic() -> None:
    texts = ["Anna has a red ball.", "Ben has a blue ball."]
    files = tokenizer_files(train_tokenizer(texts, 320), 1024)
    assert files == tokenizer_files(train_tokenizer(texts, 320), 1024)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.get_vocab_size() == 320
    assert len(tokenizer.encode(" ball", add_special_tokens=False).ids) == 1
