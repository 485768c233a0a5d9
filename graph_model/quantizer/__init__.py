"""Make quantized checkpoints: calibration, smoothing, ranges, and the tensors of ModelSlim's layout."""

from graph_model.quantizer.checkpoint import QuantizerOptions, quantize_checkpoint
from graph_model.quantizer.report import LinearReport
