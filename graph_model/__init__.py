"""Gemma as an FX graph: the plain model, its capture, weights, checkpoints, quantization and chips."""
