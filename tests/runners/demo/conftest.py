"""Fixtures of the demo's tests."""

import pytest
from tokenizers import Tokenizer

from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.training.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return load_tokenizer(CHECKPOINT_DIR)
