"""Streamed text: whole characters, no stop strings, and together the text of all tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.engine_fakes import FakeModel, byte_level_tokenizer, scripted
from tokenizers import Tokenizer, decoders, models

from graph_gemma.runners.engine import EngineDriver, RequestResult, SamplingParams, TokenEvent
from graph_gemma.runners.engine.detokenizer import Detokenizer, make_decode
from graph_gemma.runners.engine.stop_matcher import StopMatcher

BYTE_LEVEL = byte_level_tokenizer()


def sentencepiece_tokenizer(strips_first_space: bool) -> Tokenizer:
    """One token per letter, bytes for the rest; Gemma's decoder, or Llama's, which drops the text's first space."""
    pieces = ["<unk>", "<eos>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *"abcdefgh"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips_first_space else steps)
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def encode_pieces(text: str) -> list[int]:
    """Token ids of sentencepiece_tokenizer."""
    ids = []
    for letter in text:
        known = "▁abcdefgh".find("▁" if letter == " " else letter)
        ids += [258 + known] if known >= 0 else [2 + byte for byte in letter.encode()]
    return ids


def stream(decode: object, token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode)  # type: ignore[arg-type]
    return [*[detokenizer.add(token) for token in token_ids], detokenizer.flush()]


texts = st.text(st.sampled_from("abcdefgh   \n€é漢字😀👍🏽"), max_size=40)


@settings(deadline=None)
@given(texts)
@example("😀" * 20)
@example(" " * 30)
def test_pieces_are_whole_characters_and_make_up_the_text(text: str) -> None:
    token_ids = BYTE_LEVEL.encode(text)
    pieces = stream(make_decode(BYTE_LEVEL), token_ids)
    assert "".join(pieces) == text == BYTE_LEVEL.decode(token_ids)
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("strips_first_space", [False, True])
@settings(deadline=None)
@given(texts)
@example(" " * 30)
@example("a" + "漢" * 20 + " b")
def test_byte_fallback_tokenizers_stream_alike(strips_first_space: bool, text: str) -> None:
    tokenizer = sentencepiece_tokenizer(strips_first_space)
    pieces = stream(make_decode(tokenizer), encode_pieces(text))
    assert "".join(pieces) == text[strips_first_space and text.startswith(" ") :]
    assert all("\ufffd" not in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 399), max_size=60))
@example([BYTE_LEVEL.convert_tokens_to_ids("ð"), *[0] * 10, *[BYTE_LEVEL.convert_tokens_to_ids("Ł")]])
def test_any_tokens_give_the_text_that_the_tokenizer_gives(token_ids: list[int]) -> None:
    """Random tokens are mostly invalid bytes; only an incomplete end may be missing."""
    token_ids = [token for token in token_ids if token < len(BYTE_LEVEL)]
    text = "".join(stream(make_decode(BYTE_LEVEL), token_ids))
    whole = BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}


@settings(deadline=None)
@given(st.lists(st.integers(0, 266), max_size=80))
@example([2 + 0x80, *[2] * 30])
def test_invalid_bytes_are_held_for_a_few_tokens_only(token_ids: list[int]) -> None:
    tokenizer = sentencepiece_tokenizer(False)
    detokenizer = Detokenizer(make_decode(tokenizer))
    waiting = 0
    for token in token_ids:
        visible = tokenizer.decode([token], skip_special_tokens=True) != ""
        waiting = 0 if detokenizer.add(token) else waiting + visible
        assert waiting <= 9


def test_a_valid_character_survives_invalid_bytes_after_it() -> None:
    """Gemma's decoder takes a whole run of bytes as invalid when one is; what was shown stays shown."""
    decode = make_decode(sentencepiece_tokenizer(False))
    token_ids = [*encode_pieces("a€"), 2 + 0xFF, *encode_pieces("b")]
    assert "".join(stream(decode, token_ids)) == "a€\ufffdb"


def test_a_character_after_many_invalid_bytes_is_whole() -> None:
    decode = make_decode(sentencepiece_tokenizer(False))
    token_ids = [*[2 + 0xFF] * 8, *encode_pieces("€b")]
    assert "".join(stream(decode, token_ids)) == "\ufffd" * 8 + "€b"


def test_special_tokens_have_no_text_and_cost_no_window() -> None:
    calls: list[int] = []

    def decode(token_ids: list[int]) -> str:
        calls.append(len(token_ids))
        return BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)

    ids = BYTE_LEVEL.encode("the cat")
    assert "".join(stream(decode, [*ids, *[1] * 200, *ids])) == "the catthe cat"
    assert max(calls) < 20


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("ab"), max_size=30),
    st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher = StopMatcher(tuple(stop))
    shown, found = "", False
    for start, end in itertools.pairwise(edges):
        piece, found = matcher.feed(text[start:end])
        shown += piece
        assert found or not any(word in shown for word in stop)
        if found:
            break
    shown += matcher.flush()
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(word) for word in stop)]
    assert found == bool(ends)
    if ends:
        longest = max(len(word) for word in stop if text[: ends[0]].endswith(word))
        assert shown == text[: ends[0] - longest]
    else:
        assert shown == text


def run(token_ids: list[int], **sampling: object) -> tuple[RequestResult, list[TokenEvent]]:
    """An answer of these tokens, streamed."""
    model = FakeModel(choose=scripted(2, token_ids), max_seq_len=64)
    llm = EngineDriver(model, BYTE_LEVEL, eos_token_ids=[1])
    events = list(llm.stream([5, 6], SamplingParams(**{"max_new_tokens": len(token_ids), **sampling})))
    assert events[-1].result is not None
    assert "".join(event.text for event in events) == events[-1].result.text
    return events[-1].result, events


def letters(text: str) -> list[int]:
    """One token per byte."""
    return [token for letter in text for token in BYTE_LEVEL.encode(letter)]


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    token_ids = letters("one END two")
    result, events = run(token_ids, stop=["END"])
    assert result.text == "one "
    assert result.finish_reason == "stop"
    assert len(result.token_ids) == len("one END")
    assert [event.text for event in events] == ["o", "n", "e", " ", "", "", ""]


def test_text_that_only_began_like_a_stop_string_is_shown() -> None:
    result, events = run(letters("EN route EN"), stop=["END"])
    assert result.text == "EN route EN"
    assert result.finish_reason == "length"
    assert [event.text for event in events][:3] == ["", "", "EN "]


def test_the_text_before_a_stop_string_in_the_same_token_is_kept() -> None:
    token_ids = BYTE_LEVEL.encode("story\n")
    result, _ = run([*letters("a "), *token_ids, *letters("b")], stop=["ory\n"])
    assert result.text == "a st"


def test_an_end_of_sequence_token_ends_the_answer_without_text() -> None:
    result, _ = run([*letters("ab"), 1, *letters("cd")])
    assert (result.text, result.finish_reason, len(result.token_ids)) == ("ab", "stop", 3)
    result, _ = run([*letters("ab"), 1, *letters("cd")], ignore_eos=True)
    assert (result.text, result.finish_reason, len(result.token_ids)) == ("abcd", "length", 5)


def test_an_answer_cut_within_a_character_ends_before_it() -> None:
    result, events = run(letters("a😀")[:-1])
    assert result.text == "a"
    assert [event.text for event in events] == ["a", "", "", ""]


def test_held_text_comes_with_the_end_of_sequence() -> None:
    result, events = run([*letters("a E"), 1], stop=["END"])
    assert result.text == "a E"
    assert events[-1].text == "E"


@pytest.mark.parametrize(
    ("stop", "text", "count"),
    [("<pad>", "ab", 3), ("b<pad>c", "a", 4), ("<pad><pad>", "abc", 6), ("bc", "a", 4), ("c<pad>d", "abcd", 7)],
)
def test_stop_texts_see_special_tokens(stop: str, text: str, count: int) -> None:
    result, _ = run([*letters("ab"), 0, *letters("c"), 0, 0, *letters("d")], stop=[stop])
    assert (result.text, len(result.token_ids)) == (text, count)
    assert result.finish_reason == ("length" if stop == "c<pad>d" else "stop")
