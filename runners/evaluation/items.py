"""Items in BoolQ's form: title, passage, question, and the answer, yes or no."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.demo.world import held_out_items
from graph_gemma.runners.io.json_lines import read_json_lines

_FORM = 'A line is {"title": TEXT, "passage": TEXT, "question": TEXT, "answer": true or false}.'
NUM_DEMO_ITEMS = 2000


@dataclass(frozen=True)
class BoolQItem:
    """A yes/no question about a passage."""

    source: str  # file and line, for messages
    title: str
    passage: str
    question: str
    answer: bool

    @property
    def prompt(self) -> str:
        """As MindIE-LLM's accuracy test writes it, up to the answer."""
        return f"{self.title} -- {self.passage}\nQuestion: {self.question}?\nAnswer:"


def demo_items() -> list[BoolQItem]:
    """The demo's held-out items."""
    return [
        BoolQItem(f"demo item {index}", item.title, item.passage, item.question, item.answer)
        for index, item in enumerate(held_out_items(NUM_DEMO_ITEMS))
    ]


def read_items(path: Path) -> list[BoolQItem]:
    """The items of a JSONL file, empty lines skipped. Raises UserError naming the line at fault."""
    return [_item(source, value) for source, value in read_json_lines("dataset", path, _FORM)]


def _item(source: str, value: Any) -> BoolQItem:
    if not isinstance(value, dict):
        raise UserError(f"dataset: {source} is no JSON object. {_FORM}")
    for name, kind in (("title", str), ("passage", str), ("question", str), ("answer", bool)):
        if not isinstance(value.get(name), kind):
            found = f"{value[name]!r:.60}" if name in value else "missing"
            raise UserError(f"dataset: {source}: {name} is {found}. {_FORM}")
    return BoolQItem(source, value["title"], value["passage"], value["question"], value["answer"])
