"""Time of making a full-size step's graph, against lowering the same written by hand. See support.standin_cases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from hand_fused import hand_fused_decode
from support.standin_cases import A2, Cases

from graph_model.ascend.engine import compiler_config
from graph_model.ascend.ge_graph import read_graph
from graph_model.ascend.listing import count_nodes
from graph_model.ascend.lower import lower
from graph_model.ascend.soc import find_soc
from graph_model.backends.torchair import AscendOptions, kernel_passes
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_model.graph import Pages
from passes.manager import DEFAULT_PASSES, run_passes

CASES = Cases()
MOST = 2.5
PAGES = Pages(4096, 64)
BUCKET = Bucket("decode", 8, 1, 16)
T = TypeVar("T")


class Phases(dict[str, float]):
    """Seconds of CPU time by phase."""

    def run(self, name: str, function: Callable[[], T]) -> T:
        start = time.process_time()
        result = function()
        self[name] = time.process_time() - start
        return result


def own(config: GemmaConfig, dtype: torch.dtype) -> tuple[Phases, int]:
    """Phases from the plain model to the GE graph, and its kernels."""
    phases = Phases()
    graph = phases.run("capture", lambda: capture(config, BUCKET, PAGES, dtype))
    phases.run("passes", lambda: run_passes(graph, [cls() for cls in DEFAULT_PASSES]))
    phases.run("kernels", lambda: run_passes(graph, kernel_passes(AscendOptions(find_soc(A2), "exact"))))
    lowered = phases.run("lowering", lambda: lower(graph))
    return phases, count_nodes(lowered.graph).compute


def by_hand(config: GemmaConfig, dtype: torch.dtype) -> tuple[Phases, int]:
    """The same of the graph that is written by hand."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torchair import get_compiler
    from torchair.npu_fx_compiler import _get_merged_decompositions

    phases, settings = Phases(), compiler_config()
    module, inputs = phases.run("export", lambda: hand_fused_decode(config, BUCKET, PAGES, dtype))
    functional = torch.func.functionalize(lambda *arguments: module(*arguments))

    def trace_and_lower() -> object:
        mode = inputs[0].fake_mode
        with torch.no_grad(), mode:
            traced = make_fx(functional, _get_merged_decompositions(settings), tracing_mode="fake")(*inputs)
            return get_compiler(settings)(traced, inputs).runner

    concrete = phases.run("lowering", trace_and_lower)
    return phases, count_nodes(read_graph(concrete.graph._proto)).compute  # type: ignore[attr-defined]


def compare(config: GemmaConfig, dtype: torch.dtype) -> None:
    """Each twice, alternating; the faster counts. Process time, which waits do not lengthen."""
    runs = [make(config, dtype) for _ in range(2) for make in (own, by_hand)]
    ours, theirs = (min(runs[i::2], key=lambda run: sum(run[0].values())) for i in (0, 1))
    for name, (phases, kernels) in (("own", ours), ("by hand", theirs)):
        listed = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in phases.items())
        print(f"{config.num_hidden_layers} layers {name}: {listed}; {kernels} kernels")
    assert abs(ours[1] - theirs[1]) <= 3, "not an equal graph"
    ratio = sum(ours[0].values()) / sum(theirs[0].values())
    print(f"ratio {ratio:.2f}")
    assert ratio <= MOST, (ratio, ours, theirs)


@CASES.add(A2)
def a_few_layers_take_little_longer_than_by_hand(folder: Path) -> None:
    compare(replace(GEMMA_7B, num_hidden_layers=3), torch.float16)


@CASES.add(A2, slow=True)
def gemma_7b_takes_little_longer_than_by_hand(folder: Path) -> None:
    compare(GEMMA_7B, torch.bfloat16)


@CASES.add(A2, slow=True)
def gemma_2b_takes_little_longer_than_by_hand(folder: Path) -> None:
    compare(GEMMA_2B, torch.float16)


if __name__ == "__main__":
    CASES.main()
