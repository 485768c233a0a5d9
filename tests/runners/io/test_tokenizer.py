"""The tokenizer comes from the checkpoint directory, offline, and fits the model's embedding."""

import contextlib
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from support.tokenizers import BOS, VOCABULARY, ids_of, make_tokenizer

from graph_model.config import GemmaConfig
from graph_model.errors import UserError
from runners.io.tokenizer import chat_prompt, load_tokenizer

CONFIG = GemmaConfig(vocab_size=128)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    (path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    return path


def test_loads_without_touching_the_network(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    tokenizer = load_tokenizer(directory, CONFIG)

    assert tokenizer("Hi there").input_ids == [BOS, *ids_of("Hi there")]
    assert tokenizer.decode(ids_of("Hi there")) == "Hi there"


def test_absent_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"neither tokenizer.json nor tokenizer.model .* prompt_token_ids"):
        load_tokenizer(tmp_path, CONFIG)


@pytest.mark.parametrize("content", ["", "not json", '{"model": {"type": "Unheard"}}', "[]"])
def test_unreadable_tokenizer_is_refused(content: str, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((directory / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path, CONFIG)


def test_code_in_the_checkpoint_is_not_run(directory: Path, tmp_path: Path) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.update(tokenizer_class="Custom", auto_map={"AutoTokenizer": ["custom.Custom", None]})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    marker = tmp_path / "was_run"
    (tmp_path / "custom.py").write_text(f"open({str(marker)!r}, 'w')\nclass Custom: pass\n")
    with contextlib.suppress(UserError):  # some versions of transformers take the plain class instead
        load_tokenizer(tmp_path, CONFIG)
    assert not marker.exists()


def test_vocabulary_must_fit_the_embedding(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, size=120)
    load_tokenizer(tmp_path, replace(CONFIG, vocab_size=120))
    with pytest.raises(UserError, match=r"ids up to 119, but the model's embedding ends at 118"):
        load_tokenizer(tmp_path, replace(CONFIG, vocab_size=119))


MESSAGES = [
    {"role": "user", "content": "2+2?"},
    {"role": "model", "content": "4"},
    {"role": "user", "content": "Sure?"},
]


def test_chat_prompt_is_the_rendered_template_with_the_models_turn_opened(directory: Path) -> None:
    tokenizer = load_tokenizer(directory, CONFIG)
    assert chat_prompt(tokenizer, MESSAGES) == "<bos><user>2+2?</user><model>4</model><user>Sure?</user><model>"


def test_chat_template_may_be_text_or_a_file(directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory, CONFIG)
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(template)

    assert chat_prompt(tokenizer, MESSAGES, template) == "[2+2?][4][Sure?]"
    assert chat_prompt(tokenizer, MESSAGES, str(file)) == "[2+2?][4][Sure?]"


def test_chat_without_any_template_is_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(UserError, match="has no chat template"):
        chat_prompt(load_tokenizer(tmp_path, CONFIG), MESSAGES)


def test_template_that_is_neither_text_nor_file_is_refused(directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory, CONFIG)
    with pytest.raises(UserError, match="neither a Jinja template"):
        chat_prompt(tokenizer, MESSAGES, str(tmp_path / "absent.jinja"))
    (tmp_path / "plain.txt").write_text("hello")
    with pytest.raises(UserError, match="is not a Jinja template"):
        chat_prompt(tokenizer, MESSAGES, str(tmp_path / "plain.txt"))


def test_what_the_template_raises_reaches_the_user(directory: Path) -> None:
    tokenizer = load_tokenizer(directory, CONFIG)
    with pytest.raises(UserError, match=r"roles system .*System role not supported"):
        chat_prompt(tokenizer, [{"role": "system", "content": "Be kind."}])
    with pytest.raises(UserError, match="rejects the messages"):
        chat_prompt(tokenizer, MESSAGES, "{% for m in messages %}never closed")


def test_ids_of_the_test_tokenizer_are_its_own(directory: Path) -> None:
    assert load_tokenizer(directory, CONFIG).convert_ids_to_tokens(range(len(VOCABULARY))) == VOCABULARY
