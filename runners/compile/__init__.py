"""Compiling: capture -> passes -> backend, one step per bucket, kept on disk."""

from runners.compile.cache import CompileCache
from runners.compile.model import CompiledModel, num_scratch_blocks
from runners.compile.step import Recipe
