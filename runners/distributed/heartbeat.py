"""Heartbeats of ranks: find a rank that is stopped or stuck, name it and end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

_LEFT = 1 << 40  # added to the count of a rank that has finished
_KEY = "graph_gemma_heartbeat"

OnSilent = Callable[["Heartbeat", int], None]


class Heartbeat:
    """Counts in the store that this rank is alive, and watches the counts of the others until `stop`.

    host, port: of the store. timeout: seconds (ranks.timeout); a rank is taken for stopped after 0.8 of it, before a
    collective that waits for it fails without a name. on_silent: called once with this object and that rank,
    from another thread. Time in which this process was stopped itself does not count.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, timeout: int, on_silent: OnSilent) -> None:
        self._store = dist.TCPStore(host, port, None, False, timedelta(seconds=timeout), wait_for_workers=False)
        self._keys = [f"{_KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{r}" for r in range(world_size)]
        self._rank = rank
        self._interval = min(timeout / 20, 2.0)
        self._patience = 0.8 * timeout
        self._on_silent = on_silent
        self._store.set(f"{self._keys[rank]}/process", f"{_place()} {os.getpid()}")
        self._store.add(self._keys[rank], 1)
        self._processes: dict[int, str] = {}
        self._counts = [0] * world_size
        self._silent_s = [0.0] * world_size  # per rank; of this one: since the store has answered
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, name="heartbeat-watch", daemon=True).start()

    def stop(self) -> None:
        """Tell the others that this rank has finished, and watch them no longer."""
        self._ended.set()
        self._beating.join(timeout=1.0)

    def end(self, rank: int) -> None:
        """End a rank's process if it is one of this machine: stopped as it is, it does not end when it is asked to."""
        place, _, process = self._processes.get(rank, "").rpartition(" ")
        if place == _place():
            with contextlib.suppress(OSError):
                os.kill(int(process), signal.SIGKILL)

    def _beat(self) -> None:
        try:
            while True:
                finished = self._ended.wait(self._interval)
                for rank, key in enumerate(self._keys):
                    own = rank == self._rank
                    count = self._store.add(key, (_LEFT if finished else 1) if own else 0)
                    if count and rank not in self._processes:
                        self._processes[rank] = self._store.get(f"{key}/process").decode()
                    if own or count != self._counts[rank] or count >= _LEFT:
                        self._counts[rank], self._silent_s[rank] = count, 0.0
                if finished:
                    return
        except dist.DistError:
            self._ended.set()  # the store has ended, and with it whoever started this process

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            # A longer gap means that this process was stopped itself, and has not had the time to hear the others.
            waited = now - last if now - last < 5 * self._interval else self._interval
            last = now
            for rank in range(len(self._keys)):
                self._silent_s[rank] += waited
            # A store that does not answer says nothing of the ranks: it is a stopped rank 0's, or the launcher's.
            suspects = [0] if self._silent_s[self._rank] > self._patience else range(len(self._keys))
            for rank in suspects:
                if rank != self._rank and self._silent_s[rank] > self._patience:
                    self._ended.set()
                    self._on_silent(self, rank)
                    return


def _place() -> str:
    """Host and process namespace: processes of one place see each other under the same ids."""
    namespace = os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""
    return f"{socket.gethostname()} {namespace}"


def describe_silence(rank: int, timeout: int) -> str:
    """The message about a rank that sends no heartbeat."""
    return (
        f"rank {rank} has not answered within {timeout} s (ranks.timeout): it is stopped, or stuck. All ranks are "
        "ended; finished requests are in output_file, if one was given."
    )


def end_this_rank(timeout: int, launched: bool) -> OnSilent:
    """For a process that is a rank and nothing else: say which one is silent and end; the launcher then ends all.

    launched: whether the silent rank is such a process, too, and not a user's program.
    """

    def end(heartbeat: Heartbeat, rank: int) -> None:
        print(f"error: {describe_silence(rank, timeout)}", file=sys.stderr, flush=True)
        if launched:
            heartbeat.end(rank)
        os._exit(2)

    return end
