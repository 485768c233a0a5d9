"""Backends: what turns a rewritten graph into something that runs."""

from runners.backends.base import Backend, StepFunction
from runners.backends.select import select_backend

__all__ = ["Backend", "StepFunction", "select_backend"]
