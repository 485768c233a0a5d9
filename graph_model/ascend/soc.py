from dataclasses import dataclass


@dataclass(frozen=True)
class Soc:
    name: str
    cann_name: str


ATLAS_800I_A2 = Soc("atlas_800i_a2", "Ascend910B3")
ATLAS_300I_DUO = Soc("atlas_300i_duo", "Ascend310P3")
