"""The data of the demo's tasks, as lm-evaluation-harness loads it."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from graph_gemma.runners.demo.world import held_out_stories
from graph_gemma.runners.evaluation.items import demo_items


def load(**unused: Any) -> dict[str, Dataset]:
    """Held-out items; label 1 means yes."""
    items = [
        {"title": item.title, "passage": item.passage, "question": item.question, "label": int(item.answer)}
        for item in demo_items()
    ]
    return {"test": Dataset.from_list(items)}


def load_stories(**unused: Any) -> dict[str, Dataset]:
    return {"test": Dataset.from_list([{"story": story} for story in held_out_stories()])}
