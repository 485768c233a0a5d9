"""A Gemma model for use from Python: ``LLM``."""

from graph_gemma.runners.llm.llm import LLM

__all__ = ["LLM"]
