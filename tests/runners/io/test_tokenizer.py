"""The tokenizer comes from the checkpoint directory, offline, and fits the model's embedding."""

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.tokenizers import BOS, VOCABULARY, ids_of, make_tokenizer

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.io.prompts import read_prompts
from graph_gemma.runners.io.tokenizer import chat_prompt, load_tokenizer

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

    tokenizer = load_tokenizer(directory)

    assert tokenizer("Hi there").input_ids == [BOS, *ids_of("Hi there")]
    assert tokenizer.decode(ids_of("Hi there")) == "Hi there"


def test_absent_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"neither tokenizer.json nor tokenizer.model .* prompt_token_ids"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "not json", '{"model": {"type": "Unheard"}}', "[]"])
def test_unreadable_tokenizer_is_refused(content: str, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((directory / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_code_in_the_checkpoint_is_not_run(directory: Path, tmp_path: Path) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.update(tokenizer_class="Custom", auto_map={"AutoTokenizer": ["custom.Custom", None]})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    marker = tmp_path / "was_run"
    (tmp_path / "custom.py").write_text(f"open({str(marker)!r}, 'w')\nclass Custom: pass\n")
    with contextlib.suppress(UserError):  # some versions of transformers take the plain class instead
        load_tokenizer(tmp_path)
    assert not marker.exists()


def test_a_tokenizer_may_have_more_ids_than_the_embedding(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, size=120)
    tokenizer, config = load_tokenizer(tmp_path), replace(CONFIG, vocab_size=119)
    read = partial(read_prompts, tokenizer=tokenizer, config=config, max_seq_len=64)
    assert read(prompts=["Hi"])[0].token_ids == [BOS, *ids_of("Hi")]
    beyond = tokenizer.convert_tokens_to_ids("<unused20>")
    assert beyond == 119
    with pytest.raises(UserError, match=r"prompt_token_ids\[0\]: the token id 119 is out of range; .* 0 to 118"):
        read(prompt_token_ids=[[BOS, beyond]])


def as_transformers_5_writes(directory: Path, target: Path, **changes: object) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
    (target / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())


@pytest.mark.parametrize(
    "changes", [{"tokenizer_class": "TokenizersBackend"}, {"extra_special_tokens": ["<start_of_turn>"]}], ids=str
)
def test_a_tokenizer_of_a_newer_transformers_names_the_version(
    changes: dict[str, object], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def older(*args: object, **kwargs: object) -> None:
        raise AttributeError("'list' object has no attribute 'keys'")

    as_transformers_5_writes(directory, tmp_path, **changes)
    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", older)
    with pytest.raises(
        UserError, match=r"written by transformers 5, and the installed version is 4\.57\.6: pip install"
    ):
        load_tokenizer(tmp_path)


def test_sentencepiece_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_gemma.runners.io.tokenizer.find_spec", lambda name: None)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    with pytest.raises(UserError, match=r"only tokenizer\.model, a SentencePiece file, .* pip install sentencepiece"):
        load_tokenizer(tmp_path)


def edited(directory: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    raw = json.loads((directory / "tokenizer.json").read_text())
    change(raw)
    as_transformers_5_writes(directory, target)
    (target / "tokenizer.json").write_text(json.dumps(raw))
    return target


PANICS = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": ""}]}


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["model"].update(unk_token="absent"),
        lambda raw: raw["model"].update(vocab={}, unk_token=None),
        lambda raw: raw.update(normalizer=PANICS),
    ],
    ids=["no unknown token", "no vocabulary", "a normalizer of nothing"],
)
def test_a_tokenizer_that_cannot_encode_is_refused_or_works(
    change: Callable[[dict[str, Any]], Any], directory: Path, tmp_path: Path
) -> None:
    """Whatever a version of tokenizers does with it, nothing but a UserError leaves, and what loads encodes."""
    with contextlib.suppress(UserError):
        assert load_tokenizer(edited(directory, tmp_path, change))("Hello, world").input_ids


def test_a_panic_of_the_tokenizer_is_a_users_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class PanicError(BaseException):
        pass

    class Panicking:
        def __call__(self, text: str) -> None:
            raise PanicError("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Panicking())
    with pytest.raises(UserError, match=r"the tokenizer cannot be loaded \(PanicError"):
        load_tokenizer(directory)


MESSAGES = [
    {"role": "user", "content": "2+2?"},
    {"role": "model", "content": "4"},
    {"role": "user", "content": "Sure?"},
]


def test_a_chat_prompt_is_the_template_with_an_open_turn(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    assert chat_prompt(tokenizer, MESSAGES) == "<bos><user>2+2?</user><model>4</model><user>Sure?</user><model>"


def test_chat_template_may_be_text_or_a_file(directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory)
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(template)

    assert chat_prompt(tokenizer, MESSAGES, template) == "[2+2?][4][Sure?]"
    assert chat_prompt(tokenizer, MESSAGES, str(file)) == "[2+2?][4][Sure?]"


def test_chat_without_any_template_is_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(UserError, match="has no chat template"):
        chat_prompt(load_tokenizer(tmp_path), MESSAGES)


def test_template_that_is_neither_text_nor_file_is_refused(directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(directory)
    with pytest.raises(UserError, match="neither a Jinja template"):
        chat_prompt(tokenizer, MESSAGES, str(tmp_path / "absent.jinja"))
    (tmp_path / "plain.txt").write_text("hello")
    with pytest.raises(UserError, match="is not a Jinja template"):
        chat_prompt(tokenizer, MESSAGES, str(tmp_path / "plain.txt"))


def test_what_the_template_raises_reaches_the_user(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    with pytest.raises(UserError, match=r"roles system .*System role not supported"):
        chat_prompt(tokenizer, [{"role": "system", "content": "Be kind."}])
    with pytest.raises(UserError, match="rejects the messages"):
        chat_prompt(tokenizer, MESSAGES, "{% for m in messages %}never closed")


def test_ids_of_the_test_tokenizer_are_its_own(directory: Path) -> None:
    assert load_tokenizer(directory).convert_ids_to_tokens(range(len(VOCABULARY))) == VOCABULARY
