"""Making quantised checkpoints: calibration, smoothing, ranges, and the tensors of ModelSlim's layout."""

from graph_model.quantiser.checkpoint import QuantiserOptions, quantise_checkpoint
from graph_model.quantiser.report import LinearReport

__all__ = ["LinearReport", "QuantiserOptions", "quantise_checkpoint"]
