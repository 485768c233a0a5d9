"""Prompts from each source, and an error that names the prompt for each way to get one wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tokenizers import BOS, ids_of, make_tokenizer

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.io.inputs import sampling_params
from graph_gemma.runners.io.prompts import Prompt, read_prompts
from graph_gemma.runners.io.tokenizer import load_tokenizer

CONFIG = GemmaConfig(vocab_size=128)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return load_tokenizer(path)


def read(tokenizer: Any, max_seq_len: int = 64, **settings: Any) -> list[Prompt]:
    return read_prompts(tokenizer=tokenizer, config=CONFIG, max_seq_len=max_seq_len, **settings)


def with_bos(text: str) -> list[int]:
    return [BOS, *ids_of(text)]


def test_prompts_setting(tokenizer: Any) -> None:
    expected = [Prompt("Hi", with_bos("Hi")), Prompt("a b", with_bos("a b"))]
    assert read(tokenizer, prompts=["Hi", "a b"]) == expected
    assert read(tokenizer, prompts="Hi") == expected[:1]


def test_token_ids_are_taken_as_they_are_and_need_no_tokenizer() -> None:
    expected = [Prompt(None, [5, 6, 7]), Prompt(None, [0])]
    assert read(None, prompt_token_ids=[[5, 6, 7], [0]]) == expected


def test_text_file_has_a_prompt_per_line(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(b"first\r\n  second \nthird\n\n")
    assert [p.text for p in read(tokenizer, prompts_file=file)] == ["first", "  second ", "third"]


def test_jsonl_file_mixes_prompts_and_messages(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    messages = [{"role": "user", "content": "Hi"}]
    lines = [{"prompt": "one\u2028", "seed": 7}, {"messages": messages}, messages]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")

    plain, chat, bare = read(tokenizer, prompts_file=str(file))

    assert plain.text == "one\u2028"
    assert chat == Prompt("<bos><user>Hi</user><model>", [BOS, *ids_of("<user>Hi</user><model>")])
    assert bare == chat


def test_chat_makes_each_text_the_users_message(tokenizer: Any) -> None:
    (prompt,) = read(tokenizer, prompts=["Hi"], chat=True)
    assert prompt.text == "<bos><user>Hi</user><model>"
    assert prompt.token_ids.count(BOS) == 1

    (prompt,) = read(tokenizer, prompts=["Hi"], chat=True, chat_template="{{ messages[0].content }}!")
    assert prompt == Prompt("Hi!", ids_of("Hi!"))


def test_prompt_may_fill_all_but_one_position(tokenizer: Any) -> None:
    assert len(read(None, 8, prompt_token_ids=[[1] * 7])[0].token_ids) == 7
    with pytest.raises(UserError, match=r"prompt_token_ids\[1\]: the prompt has 8 tokens, but max_seq_len is 8"):
        read(None, 8, prompt_token_ids=[[1], [1] * 8])
    with pytest.raises(UserError, match=r"prompts\[0\]: the prompt has 5 tokens"):  # <bos> counts
        read(tokenizer, 5, prompts=["abcd"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "No prompt is given"),
        ({"prompts": ["a"], "prompts_file": "x.txt"}, "prompts and prompts_file are given"),
        ({"prompts": ["a"], "prompt_token_ids": [[1]]}, "prompts and prompt_token_ids are given"),
        ({"prompts": []}, "prompts: there is no prompt"),
        ({"prompts": ["a", ""]}, r"prompts\[1\]: the prompt is empty"),
        ({"prompts": ["a", 42]}, r"prompts\[1\] is 42, which is no text"),
        ({"prompts": 42}, r"prompts\[0\] is 42, which is no text"),
        ({"prompts": ["a\ud800"]}, r"prompts\[0\]: .* no Unicode text, at position 1"),
        ({"prompt_token_ids": [[1], []]}, r"prompt_token_ids\[1\]: the prompt is empty"),
        ({"prompt_token_ids": [1, 2]}, r"prompt_token_ids\[0\] is 1; it must be a list"),
        ({"prompt_token_ids": 3}, "prompt_token_ids is 3; it must be a list"),
        ({"prompt_token_ids": [[1, "x"]]}, r"prompt_token_ids\[0\]"),
        ({"prompt_token_ids": [[True]]}, r"prompt_token_ids\[0\]"),
        ({"prompt_token_ids": [[1, 128]]}, r"prompt_token_ids\[0\]: the token id 128 is out of range.* 0 to 127"),
        ({"prompt_token_ids": [[-1]]}, "the token id -1 is out of range"),
        ({"prompt_token_ids": [[1]], "chat": True}, "chat=true cannot apply to prompt_token_ids"),
        ({"prompts": ["a"], "chat_template": "{{ x }}"}, "Set chat=true"),
        ({"prompts_file": "absent.txt"}, "absent.txt cannot be read"),
        ({"prompts_file": "prompts.csv"}, "must end in .txt .* or .jsonl"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=message):
        read(tokenizer, **settings)


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="a text needs a tokenizer"):
        read(None, prompts=["a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"one\n\nthree\n", r"p.txt, line 2: the line is empty"),
        ("p.txt", b"\n\n", r"prompts_file: there is no prompt"),
        ("p.txt", b"\xff\xfe", "must be a file of UTF-8 text"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"line 2: not valid JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b"}', r"line 2: not valid JSON"),
        ("p.jsonl", b'{"text": "a"}', r"line 1: it must have either 'prompt' or 'messages'"),
        ("p.jsonl", b'{"prompt": "a", "messages": []}', r"line 1: it must have either"),
        ("p.jsonl", b"7", r"line 1: it must have either"),
        ("p.jsonl", b'{"prompt": 7}', r"line 1: 'prompt' is 7"),
        ("p.jsonl", b'{"prompt": ""}', r"line 1: the prompt is empty"),
        ("p.jsonl", b'{"messages": []}', r"line 1: 'messages' must be a list of at least one"),
        ("p.jsonl", b'{"messages": 5}', r"line 1: 'messages' must be a list of at least one"),
        ("p.jsonl", b'{"messages": null}', r"line 1: 'messages' must be a list of at least one"),
        ("p.jsonl", b'[{"role": "user"}]', r"line 1: 'messages' must be a list of at least one"),
        ("p.jsonl", b'[{"role": "user", "content": ["x"]}]', r"line 1: the content .* a part of type 'x'\. Only text"),
        (
            "p.jsonl",
            b'[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "url": "y"}]}]',
            r"line 1: the content of a message has a part of type 'image'\. Only text is read",
        ),
        ("p.jsonl", b'[{"role": "system", "content": "x"}]', r"line 1: chat: .*System role not supported"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', r"line 1: .* no Unicode text"),
        ("p.jsonl", b"[" * 100_000, r"line 1: not valid JSON"),
        ("p.jsonl", b"9" * 10_000, r"line 1: not valid JSON"),
    ],
)
def test_malformed_file_names_the_line(name: str, content: bytes, message: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tokenizer, prompts_file=tmp_path / name)


def test_a_line_sets_what_holds_for_its_own_prompt(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    own = {"max_new_tokens": 3, "ignore_eos": True, "stop": "x", "temperature": 1, "top_k": 2, "top_p": 0.5, "seed": 7}
    file.write_text("\n".join(json.dumps(line) for line in ({"prompt": "a"}, {"prompt": "b", **own})))

    plain, set_apart = read(tokenizer, prompts_file=file)

    assert plain.settings == {}
    assert set_apart.settings == {**own, "stop": ("x",), "temperature": 1.0}
    settings = compose("infer", ["sampling.top_k=5", "sampling.seed=10"])
    assert sampling_params(settings, 1, plain.settings) == SamplingParams(top_k=5, seed=11)
    assert sampling_params(settings, 1, set_apart.settings) == SamplingParams(
        max_new_tokens=3, ignore_eos=True, stop=("x",), temperature=1.0, top_k=2, top_p=0.5, seed=7
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "max_tokens",
            5,
            "there is no key 'max_tokens'. A line has",
        ),
        ("max_batch_size", 5, "there is no key 'max_batch_size'"),
        ("max_new_tokens", 0, "max_new_tokens is 0; it must be an integer of at least 1"),
        ("top_p", "x", "top_p is 'x'; it must be a number above 0 and at most 1"),
        ("k" * 10**6, 1, "there is no key 'kkk"),
    ],
)
def test_other_keys_of_a_line_are_refused(key: str, value: Any, message: str, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b", key: value}))
    with pytest.raises(UserError) as error:
        read(tokenizer, prompts_file=file)
    assert str(error.value).startswith(f"{file}, line 2: {message}")
    assert len(str(error.value)) < 1000
