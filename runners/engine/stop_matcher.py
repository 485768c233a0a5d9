"""Stop strings: find them in an answer that comes in pieces."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import accumulate


class StopMatcher:
    """Returns a text up to the first stop text, and keeps back an end that may become one.

    Special tokens leave no text. A stop text that names one, such as ``<end_of_turn>``, is searched in the answer with
    its special tokens written out; any other in the text that is shown.
    The stop text that is complete first counts (of several that end there, the longest), so that the result
    does not depend on how the text was cut into pieces. Time and memory are proportional to the texts' lengths.
    """

    def __init__(self, stop: Iterable[str], special_tokens: Iterable[str] = ()) -> None:
        special = tuple(special_tokens)
        self._searches = [_Search(text, any(token in text for token in special)) for text in stop]
        self._first = {search.text[0] for search in self._searches}
        self._held = ""  # the end of the answer that is held back, special tokens written out
        self._visible = bytearray()  # for each character of it: whether it is text that is shown

    def feed(self, piece: str, visible: bool = True) -> tuple[str, bool]:
        """Take the next piece; returns the text that may be shown and whether a stop text was found.

        visible: False for the name of a special token, which is searched and not shown.
        """
        if not self._held and self._first.isdisjoint(piece):
            return (piece if visible else ""), False
        text, flags = self._held + piece, self._visible + bytearray([visible]) * len(piece)
        for end in range(len(self._held), len(text)):
            found = [search for search in self._searches if search.step(text[end], visible)]
            if found:
                start = min(self._start(search, flags, end + 1) for search in found)
                self._held, self._visible = "", bytearray()
                return _shown(text, flags, start), True
        start = min(self._start(search, flags, len(text)) for search in self._searches)
        self._held, self._visible = text[start:], flags[start:]
        return _shown(text, flags, start), False

    def flush(self) -> str:
        """What is still held back, when no more text comes."""
        shown = _shown(self._held, self._visible, len(self._held))
        self._held, self._visible = "", bytearray()
        return shown

    @staticmethod
    def _start(search: _Search, flags: bytearray, end: int) -> int:
        """Where what the search has matched begins, if it ends before the character number `end`."""
        if search.in_all or not search.matched or 0 not in flags[:end]:
            return end - search.matched
        counts = list(accumulate(reversed(flags[:end])))
        return end - 1 - counts.index(search.matched)


class _Search:
    """A stop text and how many of its first characters the answer ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, text: str, in_all: bool) -> None:
        self.text = text
        self.in_all = in_all  # in all characters, those of special tokens included
        self.matched = 0
        self._shorter = array("q", [0])  # for each beginning: the longest shorter one that it ends with
        for character in text[1:]:
            self._shorter.append(self._next(self._shorter[-1], character))

    def step(self, character: str, visible: bool) -> bool:
        """Take a character; whether the text is complete with it."""
        if visible or self.in_all:
            self.matched = self._next(self.matched, character)
        return self.matched == len(self.text)

    def _next(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self.text[matched] == character)


def _shown(text: str, flags: bytearray, end: int) -> str:
    """The visible characters before the one number `end`."""
    if 0 not in flags[:end]:
        return text[:end]
    return "".join(character for character, flag in zip(text[:end], flags, strict=False) if flag)
