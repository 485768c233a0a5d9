"""The tokenizer of a Gemma in a GGUF file, as tokenizer.json: SentencePiece BPE, its merges made from the scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.gguf.header import Header

# llama.cpp's types of pieces.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"  # what SentencePiece writes for a space
_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def tokenizer_files(header: Header) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json; none where the file holds no vocabulary. Raises UserError."""
    if f"{_PREFIX}tokens" not in header.fields:
        return {}
    vocabulary = _Vocabulary(header)
    files = {"tokenizer.json": vocabulary.tokenizer(), "tokenizer_config.json": vocabulary.settings()}
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in files.items()}


class _Vocabulary:
    """The pieces with their scores and types, and what the other fields say about them."""

    def __init__(self, header: Header) -> None:
        self.path, self.fields = header.path, header.fields
        self.check("model", "llama", "the kind of SentencePiece that Gemma has")
        self.check("add_space_prefix", False, "as Gemma puts no space before a text")
        self.pieces = self.listed("tokens", str)
        self.types = self.listed("token_type", int, len(self.pieces))
        self.scores = self.listed("scores", float, len(self.pieces))
        for index, kind in enumerate(self.types):
            if kind == _USER_DEFINED:  # llama.cpp's converter has written spaces into it
                self.pieces[index] = self.pieces[index].replace(" ", _SPACE)
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        if len(self.ids) < len(self.pieces):
            twice = next(piece for index, piece in enumerate(self.pieces) if self.ids[piece] != index)
            raise self.wrong("tokens", twice, "there once")
        self.roles = {role: self.role(name) for role, name in _ROLES.items()}

    def tokenizer(self) -> dict[str, Any]:
        byte_fallback = _BYTE in self.types
        decoders = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "Fuse"}]
        if byte_fallback:
            decoders.insert(1, {"type": "ByteFallback"})
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [self.added(i) for i, kind in enumerate(self.types) if kind in _WHOLE],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            "pre_tokenizer": None,
            "post_processor": self.post_processor(),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": self.roles["unk"],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": byte_fallback,
                "vocab": self.ids,
                "merges": self.merges(),
            },
        }

    def merges(self) -> list[str]:
        """Pairs in the order in which they are merged: of the piece with the highest score first.

        User-defined pieces, such as runs of spaces, come before all others. As in the tokenizer.json that Google
        published: of Gemma 1 and 2 they have the order of their ids; of Gemma 3 they have the best piece's score, and
        of one score the pairs with the longest halves are first.
        """
        longest_first = self.fields.get("general.architecture") == "gemma3"
        found: list[tuple[tuple[float, ...], str, str]] = []
        for index, (piece, kind, score) in enumerate(zip(self.pieces, self.types, self.scores, strict=True)):
            if kind == _USER_DEFINED:
                score = 0.0 if longest_first else len(self.pieces) - index
            if kind in (_NORMAL, _USER_DEFINED):
                for left, right in self.halves(piece):
                    order = (score, len(left), len(right)) if longest_first else (score,)
                    found.append((order, left, right))
        found.sort(key=lambda merge: merge[0], reverse=True)
        return [f"{left} {right}" for _, left, right in found]

    def halves(self, piece: str) -> Iterator[tuple[str, str]]:
        """The pairs of pieces that a piece can be made of; none with a space, which no text has when it is merged."""
        if " " in piece:
            return
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in pairs if left in self.ids and right in self.ids]
        yield from sorted(known, key=lambda pair: (self.ids[pair[0]], self.ids[pair[1]]))

    def added(self, index: int) -> dict[str, Any]:
        """A piece that is found in a text as it is. Those that Gemma calls unused are shown when it writes them."""
        special = self.types[index] in (_UNKNOWN, _CONTROL) and not self.pieces[index].startswith("<unused")
        places = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": index, "content": self.pieces[index], **places, "special": special}

    def post_processor(self) -> dict[str, Any] | None:
        """<bos> before a text and <eos> after it, where the file says so; Gemma has <bos> alone."""
        before = [self.roles["bos"]] if self.flag("add_bos_token", True) else []
        after = [self.roles["eos"]] if self.flag("add_eos_token", False) else []
        if not before and not after:
            return None

        def template(name: str, type_id: int) -> list[dict[str, Any]]:
            parts = [*({"SpecialToken": {"id": one, "type_id": type_id}} for one in before)]
            parts.append({"Sequence": {"id": name, "type_id": type_id}})
            return [*parts, *({"SpecialToken": {"id": one, "type_id": type_id}} for one in after)]

        tokens = {one: {"id": one, "ids": [self.ids[one]], "tokens": [one]} for one in (*before, *after)}
        pair = [*template("A", 0), *template("B", 1)]
        return {"type": "TemplateProcessing", "single": template("A", 0), "pair": pair, "special_tokens": tokens}

    def settings(self) -> dict[str, Any]:
        named = {f"{role}_token": piece for role, piece in self.roles.items()}
        template = self.fields.get("tokenizer.chat_template")
        chat = {"chat_template": template} if isinstance(template, str) else {}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "spaces_between_special_tokens": False,
            **named,
            **chat,
        }

    def role(self, name: str) -> str:
        """The piece that a field names by its id; Gemma's where there is no field."""
        default = {"padding_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "unknown_token_id": 3}[name]
        index = self.fields.get(f"{_PREFIX}{name}", default)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.pieces):
            raise self.wrong(name, index, f"an id below {len(self.pieces)}, the number of tokens")
        return self.pieces[index]

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(f"{_PREFIX}{name}", default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def listed(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        value = self.fields.get(f"{_PREFIX}{name}")
        if not isinstance(value, list) or any(type(one) is not kind for one in value):
            raise self.wrong(name, value, f"a list of {kind.__name__}")
        if length is not None and len(value) != length:
            raise self.wrong(name, f"a list of {len(value)}", f"a list of {length}, one for each token")
        return list(value)

    def check(self, name: str, expected: Any, why: str) -> None:
        if (value := self.fields.get(f"{_PREFIX}{name}", expected)) != expected:
            raise self.wrong(name, value, f"{shown(expected)}, {why}")

    def wrong(self, name: str, value: Any, must: str) -> UserError:
        return UserError(
            f"{self.path}: {_PREFIX}{name} is {'missing' if value is None else shown(value)}; it must be {must}. Give "
            "the file as llama.cpp's converter wrote it for a Gemma."
        )


_WHOLE = (_UNKNOWN, _CONTROL, _USER_DEFINED)  # types of pieces that are found in a text before any merging
