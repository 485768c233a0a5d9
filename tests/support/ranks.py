"""All ranks of a group in one process: a thread each, joined by torch's threaded process group."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed import multi_threaded_pg as threaded

from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.graph_model.weights import Part, Read, take_part

Result = TypeVar("Result")
_set_isolation = torch._C._distributed_c10d._set_thread_isolation_mode


def run_ranks(world_size: int, run: Callable[[Shard], Result]) -> list[Result]:
    """The results of `run` on every rank, in lockstep; the first error is raised."""
    hook = sys.excepthook  # a process group prefixes what it prints
    threaded._install_threaded_pg()
    _set_isolation(True)
    store = dist.HashStore()
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        dist.init_process_group(backend="threaded", rank=rank, world_size=world_size, store=store)
        try:
            results[rank] = run(Shard(rank, world_size))
        except BaseException as error:
            errors.append(error)
            threaded.ProcessLocalGroup.exception_handle(error)
        finally:
            dist.destroy_process_group()

    try:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        _set_isolation(False)
        threaded._uninstall_threaded_pg()
        sys.excepthook = hook
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(world_size)]


def part_reader(read: Callable[[str], Tensor]) -> Read:
    """A reader of parts from a reader of whole tensors."""

    def read_part(name: str, part: Part | None = None) -> Tensor:
        return take_part(read(name), part)

    return read_part
