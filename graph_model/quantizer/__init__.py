"""Calibration: make quantized checkpoints (smoothing, ranges, ModelSlim's layout), and show the largest values."""

from graph_gemma.graph_model.quantizer.checkpoint import QuantizerOptions, quantize_checkpoint
from graph_gemma.graph_model.quantizer.float16_report import Float16Report
from graph_gemma.graph_model.quantizer.largest_values import largest_values
from graph_gemma.graph_model.quantizer.report import LinearReport
