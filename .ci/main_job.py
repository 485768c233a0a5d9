"""Checks what the main job printed: python .ci/main_job.py OUTPUT, a file.

The demo's prompts must be there, each continued in words of the demo's world, and its question answered rightly.
"""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path

from graph_gemma.runners.demo.world import demo_prompts, training_stories

NUM_STORIES = 5000  # with these, every word of the world has come up


def main(output: str) -> None:
    text, report = output.split("\nbackend:", 1)
    prompts = demo_prompts()
    missing = [prompt for prompt in prompts if prompt not in text]
    assert not missing, f"not answered: {missing}"
    assert f"{prompts[-1]} yes" in text, "the question is not answered with yes"
    stories = (story.text for story in islice(training_stories(), NUM_STORIES))
    known = {word for story in [*stories, *prompts] for word in words(story)} | {"yes", "no"}
    strange = sorted(set(words(text)) - known)
    assert not strange, f"no words of the demo's world: {strange}"
    assert len(words(text)) > len(words(" ".join(prompts))) + 100, "the answers are short"
    assert "peak memory:" in report
    print(f"main job: {len(words(text))} words, all of the demo's world")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text(encoding="utf-8"))
