"""The demo: a small Gemma trained on texts of a tiny world, shipped with the package."""

from pathlib import Path

CHECKPOINT_DIR = Path(__file__).resolve().parent / "checkpoint"
