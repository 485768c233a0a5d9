"""Compiling: capture -> passes -> backend, one step per bucket, kept on disk."""

from graph_gemma.runners.compile.cache import CompileCache
from graph_gemma.runners.compile.model import CompiledModel, num_scratch_blocks
from graph_gemma.runners.compile.step import Recipe
