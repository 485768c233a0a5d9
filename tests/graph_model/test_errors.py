"""Values in messages: complete where short, cut where long, never with control characters."""

from pathlib import Path

import pytest

from graph_gemma.graph_model.errors import shown


@pytest.mark.parametrize("value", [None, True, 7, -1.5, "a'b", [1, "x"], {"a": [1, 2]}, b"\x00", (1, 2)])
def test_short_values_are_their_repr(value):
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("x" * 10**7, "10000000 characters"),
        (b"x" * 10**7, "10000000 bytes"),
        (10**5000, "5001 digits"),
        (-(10**5000), "5001 digits"),
        (["y" * 10**6], "1000000 characters"),
        ({"key": 10**5000}, "5001 digits"),
    ],
    ids=range(6),
)
def test_long_values_are_cut_and_their_size_is_said(value, size):
    text = shown(value)
    assert len(text) < 300
    assert size in text


@pytest.mark.parametrize(
    "value", [list(range(10**6)), ["z" * 199] * 1000, dict.fromkeys(range(1000), "z" * 199)], ids=range(3)
)
def test_long_containers_are_cut(value):
    text = shown(value)
    assert len(text) < 410
    assert "..." in text


def test_control_characters_are_escaped():
    assert "\x1b" not in shown("a\x1b[31m") + shown(Path("a\x1b[31m")) + shown(["\x1b"])


def test_a_path_has_no_quotes():
    assert shown(Path("/data/gemma (v2)/模型")) == "/data/gemma (v2)/模型"
    assert len(shown(Path("d" * 10**6))) < 300
