"""Collectives lowered and executed on two ranks: python lowered_collectives.py RANK STORE CACHE_DIR, once per rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.printer import count_nodes
from graph_gemma.runners.backends.ascend.recording import recorded_graphs
from support.lowered_modules import compiled


def collectives(rank: int, store: str, cache_dir: str) -> None:
    """One rank of two: the collectives of a tensor-parallel step, lowered and executed."""
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    standin.load(ATLAS_800I_A2, Path(cache_dir))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        group = dist.group.WORLD
        return (
            functional.all_reduce(x, "sum", group),
            functional.all_gather_tensor(x, 0, group),
            functional.reduce_scatter_tensor(x, "sum", 0, group),
        )

    parts = [torch.arange(4.0).bfloat16() + 1, torch.arange(4.0).bfloat16() * 10]
    with recorded_graphs() as loaded, torch.no_grad():
        reduced, gathered, scattered = compiled(step)(parts[rank].to("npu"))
    total = parts[0] + parts[1]
    assert torch.equal(reduced.cpu(), total)
    assert torch.equal(gathered.cpu(), torch.cat(parts))
    assert torch.equal(scattered.cpu(), total.chunk(2)[rank])
    kinds = count_nodes(loaded[0].graph).by_type
    assert {"HcomAllReduce", "HcomAllGather", "HcomReduceScatter"} <= kinds.keys(), kinds
    dist.destroy_process_group()


if __name__ == "__main__":
    collectives(int(sys.argv[1]), *sys.argv[2:])
