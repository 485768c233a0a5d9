"""The phases of a benchmark: what each measures, prints and writes."""

from __future__ import annotations

import torch
from tqdm import tqdm

from graph_model.errors import UserError
from runners.bench.files import write_csv, write_page
from runners.bench.getting_ready import getting_ready
from runners.bench.machine import environment
from runners.bench.request import Request
from runners.bench.results import STEP_RATE, Row, cells_of
from runners.bench.speed import SpeedTest
from runners.bench.standin import on_standin, print_estimates
from runners.bench.worker import WorkerError


def run_phase(request: Request) -> None:
    """Raises UserError; ChildProcessError if the process of our engine fails or ends."""
    try:
        if request.phase in ("speed", "max_batch") and on_standin(request.model):
            print_estimates(request)
        elif request.phase == "speed":
            _speed(request)
        elif request.phase == "compile":
            print("\n".join(getting_ready(request)))
        else:
            raise UserError(f"phase={request.phase}")
    except WorkerError as error:
        raise ChildProcessError(f"our engine: {error}. Its own words are above.") from error


def _speed(request: Request) -> None:
    rows: list[Row] = []
    columns = environment(request)
    files = request.results_dir / "benchmark.csv", request.results_dir / "benchmark.html"

    def report(found: list[Row]) -> None:
        rows.extend(found)
        cells = cells_of(rows)
        write_csv(files[0], cells, columns)
        write_page(files[1], cells, columns, STEP_RATE, ("Runner", "Precision", "Batchsize", "In_seq", "Out_seq"))
        for row in found:
            tqdm.write(row.line())

    SpeedTest(request, torch.get_num_threads(), device(), report).run()
    for path in files:
        print(path)


def device() -> str:
    """Where runners compute: the one that the backends take."""
    return "cuda" if torch.cuda.is_available() else "cpu"
