"""What ranks send to each other: MatmulAllReduce, and the collectives of HCCL."""

from __future__ import annotations

from graph_model.chips.chip import Chip
from graph_model.errors import UserError


def check_matmul_all_reduce(chip: Chip, world_size: int) -> None:
    """Raise UserError unless the chip joins products and all-reduces of so many ranks in one kernel."""
    setting = "passes.ascend_matmul_all_reduce.enabled=false"
    if not chip.has("MatmulAllReduce"):
        raise UserError(
            f"soc={chip.name}: passes.ascend_matmul_all_reduce is enabled; the {chip.product} has no MatmulAllReduce. "
            f"Leave {setting}."
        )
    ranks = chip.limits("MatmulAllReduce").ranks
    if world_size not in ranks:
        sizes = ", ".join(map(str, ranks))
        raise UserError(
            f"soc={chip.name}: passes.ascend_matmul_all_reduce is enabled and world_size is {world_size}; "
            f"MatmulAllReduce joins {sizes} devices of one server. Take one of these, or {setting}."
        )
