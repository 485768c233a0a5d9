"""The texts that quantisation is calibrated on: the demo's, or a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graph_model.demo.world import calibration_texts
from graph_model.errors import UserError
from runners.tokenizer import load_tokenizer

# Longer texts are cut: ranges are found long before.
MAX_TOKENS = 512


def calibration_sequences(settings: Any, directory: Path, config: Any) -> list[list[int]]:
    """Token ids of `calibration.samples` texts. Raises UserError naming the file and the line at fault."""
    samples = settings.calibration.samples
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise UserError(f"calibration.samples is {samples!r}; it must be an integer of at least 1.")
    file = settings.calibration.file
    texts = calibration_texts(samples) if file is None else read_texts(Path(file).expanduser())[:samples]
    tokenizer = load_tokenizer(directory, config)
    return [tokenizer(text)["input_ids"][:MAX_TOKENS] for text in texts]


def read_texts(path: Path) -> list[str]:
    """The texts of a JSONL file; a line is {"prompt": TEXT} or a BoolQ item: title, passage, question, answer."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration.file: {path} cannot be read ({error}). Give a JSONL file in UTF-8.") from None
    texts = [_text(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not texts:
        raise UserError(f"calibration.file: {path} holds no items. Give a line of JSON per text.")
    return texts


def _text(path: Path, number: int, line: str) -> str:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'calibration.file: {path}, line {number} is not JSON ({error}). A line is {{"prompt": TEXT}} or a BoolQ '
            "item with title, passage, question and answer."
        ) from None
    if isinstance(item, dict):
        prompt = item.get("prompt")
        if isinstance(prompt, str) and prompt:
            return prompt
        parts = [item.get(name) for name in ("passage", "question")]
        if all(isinstance(part, str) and part for part in parts):
            answer = {"True": " yes", "False": " no"}.get(str(item.get("answer")), "")
            title = f"{item['title']} -- " if isinstance(item.get("title"), str) else ""
            return f"{title}{parts[0]}\nQuestion: {parts[1]}?\nAnswer:{answer}"
    raise UserError(
        f"calibration.file: {path}, line {number} has neither a prompt nor passage and question, as texts. A line is "
        '{"prompt": TEXT} or a BoolQ item with title, passage, question and answer.'
    )
