"""Fixtures of the tests of benchmarks."""

from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, called tiny in results."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_checkpoint(directory, TINY_CONFIGS["one_kv_head"])
    return directory
