"""UserError, for bad input: printed without a traceback; and how messages show values."""

from __future__ import annotations

import os
import reprlib

LONGEST_MESSAGE = 2000  # characters
_MOST_CHARACTERS = 200


class UserError(Exception):
    """Bad input: the message names the file or setting, what was found, the rule and the way out.

    Messages quote what others wrote: characters that a terminal obeys are escaped, and the middle of a long message is
    cut, so that its way out stays. Entry points print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} ... ({len(message) - 2 * half} characters) ... {message[-half:]}"
        super().__init__("".join(c if c.isprintable() or c in "\t\n" else ascii(c)[1:-1] for c in message))


class NoMemoryError(UserError):
    """The settings ask for more memory than there is; smaller ones would do."""


class NotFiniteError(UserError):
    """A request's logits hold NaN or infinity, so that there is no token to choose and no score to give."""

    @classmethod
    def of(cls, dtype: str, where: str) -> NotFiniteError:
        """dtype: what the model computes in. where: a sentence on the first numbers that are not finite."""
        way_out = (
            "The largest number of float16 is 65504: give dtype=bfloat16 or dtype=float32, on a device that computes "
            "in it."
            if dtype == "float16"
            else "The weights were finite when they were loaded; the checkpoint may be damaged or made for other code. "
            "Compare it with its original, with graph-gemma compare."
        )
        return cls(f"The logits of this request are not finite (NaN or infinite) in {dtype}. {where} {way_out}")


def shown(value: object) -> str:
    """A value as a message shows it: its repr on one line, cut to about 200 characters, with its size if it was cut.

    Control characters and bytes that are not UTF-8 are escaped, integers of any size are accepted, and the work is
    bounded whatever the size of a text, list or dictionary is. A path is shown without quotes.
    """
    if isinstance(value, os.PathLike):
        return repr(os.fsdecode(value))[1:-1] if len(os.fsdecode(value)) <= _MOST_CHARACTERS else shown(str(value))
    text = _REPR.repr(value)
    return text if len(text) <= 2 * _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8
        self.maxother = _MOST_CHARACTERS

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= _MOST_CHARACTERS else f"{x[:_MOST_CHARACTERS]!r}... ({len(x)} characters)"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= _MOST_CHARACTERS else f"{x[:_MOST_CHARACTERS]!r}... ({len(x)} bytes)"

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= 3 * _MOST_CHARACTERS:
            return repr(x)
        return f"an integer of about {int(x.bit_length() * 0.30103) + 1} digits"  # repr refuses more than 4300


_REPR = _Repr()
