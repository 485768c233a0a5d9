"""Passes that select the kernels of an Ascend chip."""
