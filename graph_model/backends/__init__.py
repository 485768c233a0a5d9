"""Backends: what turns a rewritten graph into something that runs."""

from graph_model.backends.base import Backend, StepFunction
from graph_model.backends.select import select_backend

__all__ = ["Backend", "StepFunction", "select_backend"]
