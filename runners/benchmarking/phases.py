"""The phases of a benchmark: what each measures, prints and writes."""

from __future__ import annotations

from functools import partial

import torch
from tqdm import tqdm

from graph_gemma.runners.benchmarking.files import write_csv, write_page
from graph_gemma.runners.benchmarking.host import measure_host
from graph_gemma.runners.benchmarking.machine import environment
from graph_gemma.runners.benchmarking.max_batch import Trial, search
from graph_gemma.runners.benchmarking.request import PHASES, Request
from graph_gemma.runners.benchmarking.results import STEP_RATE, Row, cells_of
from graph_gemma.runners.benchmarking.speed import SpeedTest
from graph_gemma.runners.benchmarking.standin import on_standin, print_estimates
from graph_gemma.runners.benchmarking.start_up import cold_and_warm
from graph_gemma.runners.benchmarking.worker import WorkerError, in_new_process
from graph_gemma.runners.engine.host_time import print_host_time


def run_phase(request: Request) -> None:
    """Raises UserError; ChildProcessError if the process of our engine fails or ends."""
    phases = {"speed": _speed, "compile": _compile, "host": _host, "max_batch": _max_batch}
    try:
        if request.phase in ("speed", "max_batch") and on_standin(request.model):
            print_estimates(request)
        else:
            phases[request.phase](request)
    except WorkerError as error:
        raise ChildProcessError(f"our engine: {error}. Its own words are above.") from error


def _speed(request: Request) -> None:
    rows: list[Row] = []
    columns = environment(request)
    files = [request.results_dir / name for name in PHASES["speed"]]

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


def _compile(request: Request) -> None:
    found = cold_and_warm(request)
    print(f"backend: {found[0].backend}")
    for start in found:
        print(start.line())
    path = request.results_dir / PHASES["compile"][0]
    write_csv(path, [start.cells(request.name) for start in found], environment(request))
    print(path)


def _host(request: Request) -> None:
    found = in_new_process("ours", partial(measure_host, request), torch.get_num_threads())
    print(f"backend: {found[0].backend}")
    for result in found:
        print(result.line())
    path = request.results_dir / PHASES["host"][0]
    write_csv(path, [result.cells(request.name) for result in found], environment(request))
    print(f"{path}\n\nThe engine alone, with a model that does nothing:")
    print_host_time()


def _max_batch(request: Request) -> None:
    rows: list[dict[str, str]] = []
    path, columns = request.results_dir / PHASES["max_batch"][0], environment(request)

    def report(trial: Trial) -> None:
        if trial.row is not None:
            limit = f"{request.latency_limit_s * 1e3:g}"
            rows.append({**trial.row.cells(), "Latency limit(ms)": limit, "Too large": trial.problem})
            write_csv(path, rows, columns)
            print(trial.row.line(), flush=True)
        if trial.problem:
            print(f"batch {trial.batch} is too large: {trial.problem}", flush=True)

    for line in search(request, torch.get_num_threads(), device(), report):
        print(line)
    if rows:
        print(path)


def device() -> str:
    """Where runners compute: the one that the backends take."""
    return "cuda" if torch.cuda.is_available() else "cpu"
