"""Checkpoints: Hugging Face directories of safetensors, read, written and converted."""

from graph_gemma.graph_model.checkpoint.expected import expected_tensors
from graph_gemma.graph_model.checkpoint.reader import Checkpoint, open_checkpoint
from graph_gemma.graph_model.checkpoint.writer import save_checkpoint
