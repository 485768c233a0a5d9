"""The texts that quantization is calibrated on: the demo's, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.demo.world import calibration_texts
from runners.io.json_lines import read_json_lines
from runners.io.tokenizer import load_tokenizer
from runners.settings.values import at_least, group, text_or_none

# Longer texts are cut: ranges are found long before.
MAX_TOKENS = 512
_SETTING = "calibration.file"
_FORM = 'A line is {"prompt": TEXT} or a BoolQ item with title, passage, question and answer.'


def calibration_sequences(settings: Any, directory: Path, config: Any) -> list[list[int]]:
    """Token ids of `calibration.samples` texts. Raises UserError naming the file and the line at fault."""
    given = group("calibration", settings)
    samples = at_least("calibration.samples", given.samples, 1)
    file = text_or_none("calibration.file", given.file)
    texts = calibration_texts(samples) if file is None else read_texts(Path(file).expanduser())[:samples]
    tokenizer = load_tokenizer(directory, config)
    return [tokenizer(text)["input_ids"][:MAX_TOKENS] for text in texts]


def read_texts(path: Path) -> list[str]:
    """The texts of a JSONL file; a line is {"prompt": TEXT} or a BoolQ item: title, passage, question, answer."""
    return [_text(source, item) for source, item in read_json_lines(_SETTING, path, _FORM)]


def _text(source: str, item: Any) -> str:
    if isinstance(item, dict):
        prompt = item.get("prompt")
        if isinstance(prompt, str) and prompt:
            return prompt
        parts = [item.get(name) for name in ("passage", "question")]
        if all(isinstance(part, str) and part for part in parts):
            answer = {"True": " yes", "False": " no"}.get(str(item.get("answer")), "")
            title = f"{item['title']} -- " if isinstance(item.get("title"), str) else ""
            return f"{title}{parts[0]}\nQuestion: {parts[1]}?\nAnswer:{answer}"
    raise UserError(f"{_SETTING}: {source} has neither a prompt nor passage and question, as texts. {_FORM}")
