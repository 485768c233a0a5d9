"""Untrusted templates run within bounds of time, memory and size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.io import bounded
from graph_gemma.runners.io.bounded import OutOfBounds, run_bounded
from graph_gemma.runners.io.tokenizer import chat_prompt


def apply_chat_template(messages: Any, chat_template: str, **options: Any) -> str:
    return render_jinja_template([messages], chat_template=chat_template)[0][0]


TOKENIZER: Any = SimpleNamespace(chat_template=None, apply_chat_template=apply_chat_template)
MESSAGES = [{"role": "user", "content": "héllo 🙂"}]


def test_a_template_gives_its_text() -> None:
    assert chat_prompt(TOKENIZER, MESSAGES, "<{{ messages[0]['content'] }}>") == "<héllo 🙂>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than 1 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "longer than 1 seconds"),
        ("{{ 'x' * (10 ** 11) }}", "memory"),
        ("{{ 'x' * (2 * 10 ** 7) }}", "longer than 16777216 bytes"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].nothing.more }}", "undefined|no attribute"),
    ],
)
def test_a_template_without_bounds_is_an_error(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "longer than 1 s" in message:
        monkeypatch.setattr(bounded, "SECONDS", 1.0)
    with pytest.raises(UserError, match=message):
        chat_prompt(TOKENIZER, MESSAGES, template)


def test_a_child_that_dies_is_an_error() -> None:
    with pytest.raises(OutOfBounds, match="without a result"):
        run_bounded(lambda: __import__("os")._exit(1))
