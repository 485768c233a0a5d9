"""Measure speed, memory and start-up: python runners/benchmark.py [SETTING=VALUE ...]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runners.entry import main

if TYPE_CHECKING:
    from runners.bench.request import Request
    from runners.bench.results import Row
    from runners.llm import LLM


def benchmark(settings: Any) -> None:
    """Run the phase that the settings name, print what was found, and write benchmark.csv and benchmark.html."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from runners.bench.getting_ready import getting_ready
    from runners.bench.request import read_request
    from runners.engine.host_time import print_host_time
    from runners.llm import LLM

    request = read_request(settings)
    if request.phase == "host":
        print_host_time()
    elif request.phase == "compile":
        print("\n".join(getting_ready(request)))
    else:
        with LLM(request.model) as llm:
            _measure(request, llm)


def _measure(request: Request, llm: LLM) -> None:
    from graph_model.ascend import standin
    from runners.bench.results import write_results
    from runners.bench.speed import SpeedTest, largest_batches
    from runners.bench.standin import estimates

    if request.model.soc is not None and standin.is_standin():
        print("\n".join(estimates(request, request.model.soc, llm.loaded.model)))
        return
    test = SpeedTest(request, llm)
    rows: list[Row] = []
    lines: list[str] = []
    if request.phase == "max_batch":
        rows, lines = largest_batches(test, request)
    else:
        for case in request.cases:
            rows += test.measure(case)
    print("\n".join([*(row.line() for row in rows), *lines, f"backend: {llm.loaded.backend}"]))
    for path in write_results(request.results_dir, rows):
        print(path)


if __name__ == "__main__":
    main(benchmark, "benchmark")
