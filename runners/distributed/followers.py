"""Start the other ranks of a user's own program, which is rank 0: they are processes that follow it."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest import mock

import torch
import torch.distributed as dist

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.parent_process import PARENT
from graph_gemma.runners.distributed.group import READY, Place, find_place, form_group, is_lost_contact
from graph_gemma.runners.distributed.heartbeat import Heartbeat, describe_silence
from graph_gemma.runners.distributed.launch import (
    describe_end,
    gloo_environment,
    meeting_place,
    serve_store,
    threads_per_rank,
)
from graph_gemma.runners.settings.model_settings import ModelSettings, check_devices

_SHUTDOWN_S = 5.0  # from the end of the program to SIGTERM, from there to SIGKILL
_POLL_S = 0.05


@contextlib.contextmanager
def lead_followers(settings: ModelSettings, follower: str) -> Iterator[None]:
    """Lead the other ranks: inside the block this process is rank 0, and they load their parts of the model and follow.

    follower: the module that such a rank runs. The ranks end with the block, and when the thread that started them
    ends. Raises UserError if a process group exists already, devices are too few or the port is in use,
    ChildProcessError naming the rank if contact is lost because one has ended.
    """
    if dist.is_initialized():
        raise UserError(
            f"world_size is {settings.world_size}, and this process belongs to a group of ranks already. Close the "
            "other model first, or run one of them in a process of its own."
        )
    check_devices(settings, settings.world_size)
    world_size = settings.world_size
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        listener = meeting_place(settings)
        stack.enter_context(mock.patch.dict(os.environ, gloo_environment(listener)))
        store = serve_store(settings, listener)
        torch.set_num_threads(threads_per_rank(world_size))
        stack.callback(torch.set_num_threads, threads)
        followers: dict[int, subprocess.Popen[bytes]] = {}
        stack.callback(_end, followers)
        for rank in range(1, world_size):
            place = Place(rank, world_size, rank, world_size)
            followers[rank] = _start(follower, settings, place, store.port)
        while store.add(READY, 0) < world_size - 1:
            _raise_if_ended(followers)
            time.sleep(_POLL_S)

        def end_silent(heartbeat: Heartbeat, rank: int) -> None:
            print(f"error: {describe_silence(rank, settings.ranks.timeout)}", file=sys.stderr, flush=True)
            followers[rank].kill()  # the collective that waits for it fails, and names it

        heartbeat = form_group(settings, Place(0, world_size, 0, world_size), end_silent, store)
        stack.callback(dist.destroy_process_group)
        stack.callback(heartbeat.stop)
        try:
            yield
        except Exception as error:
            if is_lost_contact(error):
                _wait(followers, anyone=True)
                _raise_if_ended(followers, error)
            raise
        _wait(followers)
        _raise_if_ended(followers)


def needs_followers(settings: ModelSettings) -> bool:
    """Whether the model is to be shared with ranks that no launcher has started."""
    return settings.world_size > 1 and find_place() is None


def _start(follower: str, settings: ModelSettings, place: Place, port: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.setdefault("OMP_NUM_THREADS", str(threads_per_rank(place.world_size)))
    environment[PARENT] = str(os.getpid())
    # A session of its own: Ctrl-C interrupts the program, which ends the others in its own time.
    process = subprocess.Popen(
        [sys.executable, "-m", follower], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    with process.stdin:
        pickle.dump((settings, place, port), process.stdin)
    return process


def _raise_if_ended(followers: dict[int, subprocess.Popen[bytes]], cause: Exception | None = None) -> None:
    for rank, process in followers.items():
        if process.poll():
            raise ChildProcessError(describe_end(rank, process.pid, process.returncode)) from cause


def _wait(followers: dict[int, subprocess.Popen[bytes]], anyone: bool = False) -> None:
    """Wait a while until all of them have ended, or any one."""
    deadline = time.monotonic() + _SHUTDOWN_S
    quantifier = any if anyone else all
    while time.monotonic() < deadline and not quantifier(p.poll() is not None for p in followers.values()):
        time.sleep(_POLL_S)


def _end(followers: dict[int, subprocess.Popen[bytes]]) -> None:
    for process in followers.values():
        process.terminate()
    _wait(followers)
    for process in followers.values():
        process.kill()
        process.wait()
