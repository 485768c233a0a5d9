"""Fixtures of tests that read checkpoints."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import write_random_checkpoint
from support.foreign_checkpoints import CONFIG


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of two small layers, for a test to change."""
    torch.manual_seed(0)
    write_random_checkpoint(tmp_path / "model", CONFIG)
    return tmp_path / "model"
