"""The tensors a config asks for are the parameters of the plain model."""

import pytest
import torch
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.checkpoint import expected_tensors
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.families import family_of

CONFIGS = {**TINY_CONFIGS, "2b": GEMMA_2B, "7b": GEMMA_7B}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_names_and_shapes_are_the_plain_models(config: GemmaConfig) -> None:
    with torch.device("meta"):
        parameters = dict(family_of(config).model().named_parameters())  # names a tied tensor once

    assert expected_tensors(config) == {name: tuple(p.shape) for name, p in parameters.items()}
