"""Fixtures of the demo's tests."""

import pytest
from tokenizers import Tokenizer

from runners.demo import CHECKPOINT_DIR
from runners.demo.training.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return load_tokenizer(CHECKPOINT_DIR)
