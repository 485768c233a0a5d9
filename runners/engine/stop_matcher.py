"""StopMatcher: finds stop strings in a text that comes in pieces."""

from __future__ import annotations


class StopMatcher:
    """Lets a text through up to the first stop string, and holds back what may turn out to be one.

    The stop string that is complete first counts (of several that end there, the longest), so that the result
    does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take the next piece; returns the text that may be shown and whether a stop string was found."""
        text = self._held + piece
        starts = [(text.find(stop), len(stop)) for stop in self._stop]
        found = [(start + length, start) for start, length in starts if start >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What is still held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
