"""The texts that quantization is calibrated on: the demo's, or a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import NoMemoryError, UserError
from graph_gemma.runners.backends.memory import free_memory
from graph_gemma.runners.demo.world import calibration_texts
from graph_gemma.runners.io.json_lines import read_json_lines
from graph_gemma.runners.io.tokenizer import load_tokenizer
from graph_gemma.runners.settings.declared.quantize import Calibration

# Longer texts are cut: ranges are found long before.
MAX_TOKENS = 512
_SETTING = "calibration.file"
# Fields that hold a text: ours, that of the calibration files of MindIE and ModelSlim, and that of plain corpora.
_TEXT_FIELDS = ("prompt", "inputs_pretokenized", "text")
_FORM = (
    'A line is {"prompt": TEXT}, {"inputs_pretokenized": TEXT} as in the files of MindIE and ModelSlim, or a BoolQ '
    "item with title, passage, question and answer; a .json file is a list of texts or of these."
)


def calibration_sequences(calibration: Calibration, directory: Path, config: GemmaConfig) -> list[list[int]]:
    """Token ids of `calibration.samples` texts.

    Raises UserError naming the file and the line at fault, or where there is no memory for the texts' hidden states.
    """
    samples, file = calibration.samples, calibration.file
    texts = calibration_texts(samples) if file is None else read_texts(Path(file).expanduser())[:samples]
    tokenizer = load_tokenizer(directory)
    room = free_memory(torch.device("cpu"))
    sequences: list[list[int]] = []
    for number, text in enumerate(texts, 1):
        ids = tokenizer(text)["input_ids"][:MAX_TOKENS]
        room -= len(ids) * config.hidden_size * torch.float32.itemsize
        if room < 0:
            raise NoMemoryError(
                f"calibration.samples is {samples}: there is no memory for the hidden states of more than {number - 1} "
                f"texts. Give at most calibration.samples={number - 1}."
            )
        sequences.append(ids)
        if max(ids, default=0) >= config.vocab_size:
            raise UserError(
                f"{_SETTING}: text {number} has the token id {max(ids)}, but the model's embedding ends at "
                f"{config.vocab_size - 1} (vocab_size in config.json). Leave the text out."
            )
    return sequences


def read_texts(path: Path) -> list[str]:
    """The texts of a file: .jsonl with an item per line, or .json with a list of texts or items. Raises UserError.

    An item has one of `_TEXT_FIELDS`, or is of BoolQ: title, passage, question, answer.
    """
    if path.suffix == ".json":
        return [_text(source, item) for source, item in _read_list(path)]
    return [_text(source, item) for source, item in read_json_lines(_SETTING, path, _FORM)]


def _read_list(path: Path) -> list[tuple[str, Any]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{_SETTING}: {path} cannot be read as JSON ({error}). {_FORM}") from None
    if not isinstance(items, list) or not items:
        raise UserError(f"{_SETTING}: {path} holds no list of texts. {_FORM}")
    return [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _text(source: str, item: Any) -> str:
    if isinstance(item, str) and item:
        return item
    if isinstance(item, dict):
        for field in _TEXT_FIELDS:
            if isinstance(item.get(field), str) and item[field]:
                text: str = item[field]
                return text
        parts = [item.get(name) for name in ("passage", "question")]
        if all(isinstance(part, str) and part for part in parts):
            answer = {"True": " yes", "False": " no"}.get(str(item.get("answer")), "")
            title = f"{item['title']} -- " if isinstance(item.get("title"), str) else ""
            return f"{title}{parts[0]}\nQuestion: {parts[1]}?\nAnswer:{answer}"
    raise UserError(f"{_SETTING}: {source} has none of {', '.join(_TEXT_FIELDS)}, nor passage and question. {_FORM}")
