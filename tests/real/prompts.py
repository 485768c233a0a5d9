"""Prompts for the real model: English, Chinese, code, and one far longer than its window of 512 tokens."""

from __future__ import annotations

from typing import Any

from tests.real.material import ROOT

ENGLISH = (
    "The lighthouse keeper had written the same sentence in his logbook every evening for eleven years: wind from the "
    "west, no ships. On the first of March, for once, he wrote something else."
)
CHINESE = "长江是亚洲最长的河流，全长约六千三百公里。它发源于青藏高原，流经十一个省、自治区和直辖市，最后"  # noqa: RUF001
CODE = '''def merge(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join intervals that overlap; the result is sorted."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
'''
SHORT = (ENGLISH, CHINESE, CODE)


def long_text(tokenizer: Any, tokens: int) -> str:
    """So many tokens of this project's own pages, which the model has not seen."""
    pages = (ROOT / "docs" / f"{name}.md" for name in ("how-data-flows", "engine", "quantization"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) >= tokens, len(ids)
    return str(tokenizer.decode(ids[:tokens]))
