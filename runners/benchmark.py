"""Measure speed, memory and start-up: python runners/benchmark.py [SETTING=VALUE ...]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.benchmarking.request import Request
    from graph_gemma.runners.settings.declared.benchmark import BenchmarkSettings


def benchmark(settings: BenchmarkSettings) -> None:
    """Run the phase that the settings name, print what was found, and write its files."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_gemma.runners.benchmarking.phases import run_phase
    from graph_gemma.runners.benchmarking.request import read_request

    request = read_request(settings)
    if not _follows(request):
        run_phase(request)


def _follows(request: Request) -> bool:
    """Follow rank 0 to its end if torchrun started this process as a rank above 0; returns whether it did."""
    from graph_gemma.graph_model.errors import UserError
    from graph_gemma.runners.distributed.group import find_place, join
    from graph_gemma.runners.llm.follow import follow
    from graph_gemma.runners.settings.model_settings import check_place

    place = find_place()
    if place is None:
        return False
    check_place(request.model, place.world_size)
    if request.phase != "speed":
        raise UserError(f"phase is {request.phase}, which starts its ranks itself. Run it without torchrun.")
    if place.rank == 0:
        return False
    with join(request.model, place):
        follow(request.model)
    return True


if __name__ == "__main__":
    main(benchmark, "benchmark")
