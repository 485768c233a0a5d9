"""The chips that the setting `soc` can name."""

from __future__ import annotations

from graph_gemma.graph_model.chips.atlas_300i_duo import ATLAS_300I_DUO
from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2, ATLAS_800I_A2_910B4
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.errors import UserError

CHIPS: dict[str, Chip] = {chip.name: chip for chip in (ATLAS_800I_A2, ATLAS_800I_A2_910B4, ATLAS_300I_DUO)}


def find_soc(name: str) -> Chip:
    """The chip that soc=NAME means. Raises UserError naming the known ones."""
    if name not in CHIPS:
        raise UserError(f"soc={name} is not known; the chips are {', '.join(CHIPS)}.")
    return CHIPS[name]
