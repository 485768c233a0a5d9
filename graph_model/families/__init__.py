"""Model families, which describe their models layer by layer."""

from __future__ import annotations

from functools import lru_cache

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig
from graph_gemma.graph_model.families.family import Counts, Family
from graph_gemma.graph_model.families.gemma1 import Gemma1
from graph_gemma.graph_model.families.gemma2 import Gemma2
from graph_gemma.graph_model.families.gemma3 import Gemma3
from graph_gemma.graph_model.families.layer import Attention, Layer, Linear, LinearGroup, Norm, Role

# The family of each type of config; a family is added by an entry here.
FAMILIES: dict[type[GemmaConfig], type[Family]] = {
    GemmaConfig: Gemma1,
    Gemma2Config: Gemma2,
    Gemma3Config: Gemma3,
}


@lru_cache(maxsize=64)
def family_of(config: GemmaConfig) -> Family:
    """The description of the model that `config` names, one object per config."""
    return FAMILIES[type(config)](config)
