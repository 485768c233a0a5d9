"""Accuracy: items and texts scored through the engine, and lm-evaluation-harness's tasks."""
