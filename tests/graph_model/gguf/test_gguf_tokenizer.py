"""The tokenizer of a GGUF file: its ids are those of SentencePiece's BPE, which is computed here by its definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import BYTES, CONFIGS, CONTROLS, SPACE, small, vocabulary, write_gguf
from transformers import PreTrainedTokenizerBase

from graph_gemma.graph_model.gguf import convert_gguf
from graph_gemma.runners.io.tokenizer import load_tokenizer

FIELDS = {name.removeprefix("tokenizer.ggml."): value for name, value in vocabulary(320).items()}
PIECES = [p.replace(" ", SPACE) if t == 4 else p for p, t in zip(FIELDS["tokens"], FIELDS["token_type"], strict=True)]
SCORES = {
    piece: 1.0 if kind == 4 else score  # user-defined pieces come first
    for piece, kind, score in zip(PIECES, FIELDS["token_type"], FIELDS["scores"], strict=True)
    if kind in (1, 4)
}
WHOLE = [piece for piece, kind in zip(PIECES, FIELDS["token_type"], strict=True) if kind in (2, 3)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("gguf")
    template = {"tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"}
    write_gguf(directory / "m.gguf", small(CONFIGS["gemma3"]), fields=template)
    convert_gguf(directory / "m.gguf", directory / "c")
    return load_tokenizer(directory / "c")


def encode(text: str) -> list[str]:
    """The pieces of a text: the neighbours that make the piece of the best score are joined, again and again."""
    parts = list(text.replace(" ", SPACE))
    while True:
        joined = [(SCORES[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in SCORES]
        if not joined:
            break
        index = -max(joined)[1]
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return [p for part in parts for p in ([part] if part in PIECES else [f"<0x{b:02X}>" for b in part.encode()])]


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.text(st.sampled_from([*"abcde", "你", "é", "x"]), min_size=1, max_size=8), max_size=6))
def test_ids_are_those_of_the_scores(words: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    text = " ".join(words)
    expected = [PIECES.index(piece) for piece in encode(text)]
    assert tokenizer(text, add_special_tokens=False).input_ids == expected


def pieces_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[return-value]


def test_user_defined_pieces_are_found_first(tokenizer: PreTrainedTokenizerBase) -> None:
    """Spaces of such pieces are written as U+2581; else a run of spaces falls apart."""
    assert pieces_of("a  b", tokenizer) == ["a", SPACE * 2, "b"]
    assert pieces_of("a   a", tokenizer) == ["a", SPACE * 3, "a"]
    assert pieces_of("\n\n\n", tokenizer) == ["\n\n\n"]
    assert pieces_of("a<table>b", tokenizer) == ["a", "<table>", "b"]


def test_longer_runs_of_spaces_fall_apart_as_google_s(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Of Gemma 3 the longest piece first, of Gemma 1 and 2 in the order of their ids."""
    write_gguf(tmp_path / "m.gguf", small(CONFIGS["gemma2"]))
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c")
    assert pieces_of(" " * 4, tokenizer) == [SPACE * 3, SPACE]
    assert pieces_of(" " * 4, load_tokenizer(tmp_path / "c")) == [SPACE * 2, SPACE * 2]


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    named = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token]
    assert named == CONTROLS[:4]
    assert tokenizer("ab").input_ids[0] == 2, "<bos> comes first"
    assert pieces_of("<start_of_turn>ab<end_of_turn>", tokenizer) == ["<start_of_turn>", "ab", "<end_of_turn>"]
    ids = tokenizer("a<unused3>b").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<unused3>b"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_every_text_comes_back(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    expected = text.encode("utf-8", "replace").decode().replace(SPACE, " ")
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected


def test_the_chat_template_is_the_file_s(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<bos>ab"


def test_bytes_are_the_last_resort(tokenizer: PreTrainedTokenizerBase) -> None:
    assert pieces_of("é", tokenizer) == [BYTES[0xC3], BYTES[0xA9]]


def test_a_file_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    absent = dict.fromkeys(vocabulary(320))
    write_gguf(tmp_path / "m.gguf", small(CONFIGS["gemma"]), fields=absent)
    lines: list[str] = []
    convert_gguf(tmp_path / "m.gguf", tmp_path / "c", report=lines.append)
    assert not (tmp_path / "c" / "tokenizer.json").exists()
    assert any("holds no tokenizer" in line for line in lines)
