"""Stop texts: found wherever pieces are cut, special tokens by their names, in time and memory like the texts'."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from graph_gemma.runners.engine.stop_matcher import StopMatcher

SPECIAL = "<s>"
PIECES = st.lists(st.sampled_from(["a", "b", "ab", "c", "", SPECIAL]), max_size=12)
STOPS = st.lists(
    st.lists(st.sampled_from(["a", "b", SPECIAL]), min_size=1, max_size=4).map("".join), min_size=1, max_size=3
)


def by_definition(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Every end is tried: the first at which a stop text is complete, the longest of several."""
    characters = [(c, piece != SPECIAL) for piece in pieces for c in piece]
    visible = "".join(c for c, shown in characters if shown)
    for end in range(1, len(characters) + 1):
        written, shown = ("".join(c for c, v in characters[:end] if v or all_of) for all_of in (True, False))
        starts = [
            sum(v for _, v in characters[: end - len(stop)]) if SPECIAL in stop else len(shown) - len(stop)
            for stop in stops
            if (written.endswith(stop) if SPECIAL in stop else characters[end - 1][1] and shown.endswith(stop))
        ]
        if starts:
            return visible[: min(starts)], True
    return visible, False


@given(STOPS, PIECES)
def test_pieces_are_searched_as_the_whole_text_is(stops: list[str], pieces: list[str]) -> None:
    matcher, shown = StopMatcher(stops, [SPECIAL]), ""
    for piece in pieces:
        text, found = matcher.feed(piece, piece != SPECIAL)
        shown += text
        if found:
            break
    else:
        found, shown = False, shown + matcher.flush()
    assert (shown, found) == by_definition(stops, pieces)


def test_a_long_stop_text_takes_memory_like_its_length() -> None:
    stop = "a" * 50_000 + "b"
    tracemalloc.start()
    matcher = StopMatcher([stop])
    assert matcher.feed("a" * 49_999) == ("", False)
    assert matcher.feed("aab") == ("a", True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * len(stop)
