"""Compiling: capture -> passes -> backend, one step per bucket, kept on disk."""

from graph_model.compile.cache import CompileCache
from graph_model.compile.model import CompiledModel, num_scratch_blocks
from graph_model.compile.step import Recipe

__all__ = ["CompileCache", "CompiledModel", "Recipe", "num_scratch_blocks"]
