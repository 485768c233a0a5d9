"""StopMatcher: finds stop strings in a text that comes in pieces."""

from __future__ import annotations


class StopMatcher:
    """Lets a text through up to the first stop string, and holds back what may turn out to be one.

    The stop string that is complete first counts (of several that end there, the longest), so that the result
    does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._beginnings = tuple({text[:length] for text in stop for length in range(1, len(text))})
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take the next piece; returns the text that may be shown and whether a stop string was found."""
        text = self._held + piece
        self._held = ""
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]
        if found:
            return text[: min(found)[1]], True
        if not text.endswith(self._beginnings):
            return text, False
        held = max(len(beginning) for beginning in self._beginnings if text.endswith(beginning))
        self._held = text[-held:]
        return text[:-held], False

    def flush(self) -> str:
        """What is still held back, when no more text comes."""
        held, self._held = self._held, ""
        return held
