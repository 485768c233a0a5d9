"""The tokenizer that is made of the GGUF file has the ids of the real one; ids without a row are refused."""

from __future__ import annotations

import json
import random
from typing import Any

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.gguf.header import Header
from graph_gemma.graph_model.gguf.tokenizer import tokenizer_files
from graph_gemma.runners.io.prompts import read_prompts
from graph_gemma.runners.io.tokenizer import load_tokenizer
from tests.real.material import Material
from tests.real.report import Lines

NUM_TEXTS = 3000
_FIXED = [
    " " * 31,
    " " * 40,
    "\n" * 70,
    "\t" * 33,
    "  a  b   c\t\td\n\n\n e",
    "\u2581\u2581\u2581 x \u2581",
    "e\u0301é",
    "a" * 500,
]
_FIXED += ["<start_of_turn>user\nhi<end_of_turn>\n", "<unused5> <table> </b>", "\U0001f600\u200d\x00\x7f", ""]


def check(material: Material) -> Lines:
    ours, real = load_tokenizer(material.model), load_tokenizer(material.tokenizer("tokenizer-gemma3"))
    texts = stress_texts(sorted(real.get_vocab()))
    differ = [text for text in texts if ours(text).input_ids != real(text).input_ids]
    lines: Lines = [
        (f"Gemma 3: {len(texts) - len(differ)} of {len(texts)} texts have equal ids {differ[:3]}", not differ)
    ]
    lines.append(gemma_1_and_2(material))
    lines.append(one_id_more(material, real))
    return lines


def stress_texts(pieces: list[str]) -> list[str]:
    """Pieces in a row, runs of white space and tags, and characters of many scripts."""
    draw = random.Random(0)
    odd = [*" \n\tab12.<>/\u2581你é\U0001f44d", "<b>", "  ", "\n\n"]
    ranges = [(0, 0x250), (0x3000, 0x9FFF), (0x1F300, 0x1F6FF), (0x600, 0x6FF), (0xAC00, 0xD7A3)]
    makers = (
        lambda: draw.choice(pieces),
        lambda: draw.choice(odd),
        lambda: chr(draw.randint(*draw.choice(ranges))),
    )
    texts = ["".join(draw.choice(makers)() for _ in range(draw.randint(1, 40))) for _ in range(NUM_TEXTS // 2)]
    alike = ["".join(make() for _ in range(draw.randint(1, 40))) for make in makers for _ in range(NUM_TEXTS // 6)]
    return [*_FIXED, *texts, *alike]


def gemma_1_and_2(material: Material) -> tuple[str, bool]:
    """There is no GGUF file of them: its fields are made from the real tokenizer.json, whose merges are in order."""
    directory = material.tokenizer("tokenizer-gemini")
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = raw["model"]["vocab"]
    rank: dict[str, int] = {}
    for merge in raw["model"]["merges"]:
        rank.setdefault(merge.replace(" ", ""), len(rank))
    added = {token["content"]: token["special"] for token in raw["added_tokens"]}
    pieces = sorted(ids, key=ids.__getitem__)
    kinds = [kind_of(piece, added) for piece in pieces]
    fields = {
        "model": "llama",
        "tokens": pieces,
        "scores": [-float(rank.get(piece, len(rank))) for piece in pieces],
        "token_type": kinds,
    }
    stated = {"general.architecture": "gemma2", **{f"tokenizer.ggml.{name}": value for name, value in fields.items()}}
    header = Header(directory / "made.gguf", stated, {}, 0)
    made = material.folder / "made"
    made.mkdir(exist_ok=True)
    for name, content in tokenizer_files(header).items():
        (made / name).write_bytes(content)
    ours, real = load_tokenizer(made), load_tokenizer(directory)
    texts = stress_texts(pieces)
    differ = [text for text in texts if ours(text).input_ids != real(text).input_ids]
    line = (
        f"Gemma 1 and 2, from scores in the order of its merges: {len(texts) - len(differ)} of {len(texts)} texts have"
    )
    return f"{line} equal ids {differ[:3]}", not differ


def kind_of(piece: str, added: dict[str, bool]) -> int:
    """llama.cpp's type of a piece."""
    if piece in added:
        return 3 if added[piece] or piece.startswith("<unused") else 4
    return 6 if len(piece) == 6 and piece.startswith("<0x") else 1


def one_id_more(material: Material, real: Any) -> tuple[str, bool]:
    """The real tokenizer has <image_soft_token> as the id 262,144, and the embedding has 262,144 rows."""
    config = read_config(material.model)
    text = "What is in <image_soft_token>?"
    try:
        read_prompts(prompts=[text], tokenizer=real, config=config, max_seq_len=64)
    except UserError as error:
        return f"{len(real)} ids, {config.vocab_size} rows; {text!r} is refused: {error}", "out of range" in str(error)
    return f"{text!r} is not refused", False
