"""Run a model on the ranks that share it: ``on_ranks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graph_gemma.runners.settings.model_settings import ModelSettings


def on_ranks(settings: ModelSettings, lead: Callable[[], None]) -> None:
    """Call `lead` where the model is loaded and driven: here, or on rank 0 of `world_size` ranks.

    With several ranks this process starts them, as copies of its own command, and waits. A process that is a rank
    already, one of these or one of torchrun's, joins the others; all but rank 0 follow it until it has finished.
    Raises UserError; ends with status 1, naming the rank, if a rank fails.
    """
    # Importing torch takes seconds, which the check of the settings need not wait for.
    from graph_gemma.runners.distributed.group import find_place, join
    from graph_gemma.runners.settings.model_settings import check_place

    place = find_place()
    if place is not None:
        check_place(settings, place.world_size)
    if settings.world_size == 1:
        lead()
    elif place is None:
        from graph_gemma.runners.distributed.launch import start_ranks

        start_ranks(settings)
    else:
        from graph_gemma.runners.llm.follow import follow

        with join(settings, place):
            if place.rank == 0:
                lead()
            else:
                follow(settings)
