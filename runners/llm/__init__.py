"""A Gemma model for use from Python: ``LLM``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graph_gemma.runners.llm.llm import LLM

__all__ = ["LLM"]


def __getattr__(name: str) -> object:
    """Import LLM, and torch with it, when it is first asked for: that takes seconds."""
    if name != "LLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from graph_gemma.runners.llm.llm import LLM

    return LLM
