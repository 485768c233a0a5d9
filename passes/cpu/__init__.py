"""Passes that select the kernels of a CPU."""
