"""Quantization: which linears of a model are quantized, and how."""
