"""Incremental detokenization: the text of a token stream, whole characters only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Decode = Callable[[list[int]], str]

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
_MAX_WINDOW = 8  # tokens that are decoded together before the oldest are dropped
_MAX_HELD = 8  # tokens that may wait for a character's end; UTF-8 characters have at most 4 bytes


class Detokenizer:
    """Turns tokens into text one at a time; the pieces together are the text of all tokens, special ones left out.

    A tokenizer's text of a token may depend on its neighbours (bytes of one character, leading spaces), so a window
    of the last tokens is decoded anew each time and what it adds is given out. A text that ends in U+FFFD may end
    within a character: it is held until it is whole, or until so many tokens wait that it cannot become so.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_shown = 0  # tokens of the window whose text was given out
        self._shown = ""  # text of those tokens

    def add(self, token_id: int) -> str:
        """Take the next token; returns the text that is certain now, possibly none."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(_INCOMPLETE):
            return self._show(text)
        if not self._decode([token_id]):  # a special token; it neither completes a character nor gives one up
            self._window.pop()
            return ""
        if len(self._window) - self._num_shown <= _MAX_HELD:
            return ""
        return self._show_invalid(text)

    def flush(self) -> str:
        """The text still held when no more tokens come, less an incomplete character at its end."""
        if self._num_shown == len(self._window):
            return ""
        text = self._decode(self._window)
        if not text.startswith(self._shown):
            text = self._restart()
        return text[len(self._shown) :].rstrip(_INCOMPLETE)

    def _show(self, text: str) -> str:
        if not text.startswith(self._shown):
            text = self._restart()
        piece = text[len(self._shown) :]
        if len(self._window) <= _MAX_WINDOW:
            self._shown = text
        elif piece:
            # The newest piece's tokens remain: some visible context, so that leading spaces stay leading no more.
            del self._window[: self._num_shown]
            self._shown = self._decode(self._window)
        else:
            self._window.pop()
        self._num_shown = len(self._window)
        return piece

    def _restart(self) -> str:
        """Begin a window after what was shown: invalid bytes made the decoder take back a text already given out."""
        del self._window[: self._num_shown]
        self._num_shown, self._shown = 0, ""
        return self._decode(self._window)

    def _show_invalid(self, text: str) -> str:
        """Give out invalid bytes, but for the last tokens, which may begin a character."""
        cut = self._find_cut(text)
        head = self._decode(self._window[:cut])
        if not head.startswith(self._shown):
            head = self._shown + self._decode(self._window[self._num_shown : cut])
        piece = head[len(self._shown) :]
        del self._window[:cut]
        self._num_shown, self._shown = 0, ""
        return piece

    def _find_cut(self, text: str) -> int:
        """Where the window can be cut. A cut within a character shows: the halves have another text than the whole.

        Some decoders take a run of bytes as invalid altogether, so that any cut shows; then one is as good as another.
        """
        for cut in range(len(self._window) - 1, len(self._window) - 7, -1):
            if self._decode(self._window[:cut]) + self._decode(self._window[cut:]) == text:
                return cut
        return len(self._window) - 3


def make_decode(tokenizer: Any) -> Decode:
    """The tokenizer's decoding without special tokens.

    Of a fast transformers tokenizer the Rust decoder is called directly: a fifth of the time, and without
    clean_up_tokenization_spaces, which changes text that was already shown.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)

    def decode(token_ids: list[int]) -> str:
        return backend.decode(token_ids, skip_special_tokens=True)

    return decode


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The names of the special tokens, which decoding leaves out, by id."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "get_added_tokens_decoder"):
        return {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
    ids, names = (getattr(tokenizer, f"all_special_{kind}", ()) for kind in ("ids", "tokens"))
    return dict(zip(ids, names, strict=True))
