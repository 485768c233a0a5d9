"""A rank that is stopped, not dead, is named and ended within ranks.timeout; the ranks meet at their address alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.distributed import launch
from graph_gemma.runners.distributed.launch import gloo_environment, meeting_place, serve_store
from graph_gemma.runners.settings.declared.model import Ranks
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings

TIMEOUT = 10
# Rank R of 2 that meet at PORT. It ends by itself after a minute, or when it is told to by a line on its input.
RANK = """
import sys
from graph_gemma.runners.distributed.heartbeat import Heartbeat, end_this_rank
port, rank, timeout = map(int, sys.argv[1:])
heartbeat = Heartbeat("127.0.0.1", port, rank, 2, timeout, end_this_rank(timeout, True))
print("beating", flush=True)
sys.stdin.readline()
heartbeat.stop()
"""


@pytest.fixture
def settings() -> ModelSettings:
    resolved = resolve_settings(compose("infer", ["world_size=2", "ranks.master_port=null", "ranks.timeout=60"]))
    assert resolved.ranks == Ranks(devices=None, master_address="127.0.0.1", master_port=None, timeout=60)
    return resolved


def start(port: int, rank: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(port), str(rank), str(TIMEOUT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_the_other_within_the_timeout(stopped: int, settings: ModelSettings) -> None:
    listener = meeting_place(settings)
    port = int(listener.getsockname()[1])
    store = serve_store(settings, listener)
    assert store.port == port
    processes = [start(port, rank) for rank in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n"
    other = processes[1 - stopped]
    begun = time.monotonic()
    os.kill(processes[stopped].pid, signal.SIGSTOP)
    try:
        assert other.wait(timeout=6 * TIMEOUT) == 2
        assert processes[stopped].wait(timeout=TIMEOUT) == -signal.SIGKILL, "a stopped process does not end otherwise"
    finally:
        processes[stopped].kill()
        processes[stopped].communicate()
    assert other.communicate()[1].startswith(
        f"error: rank {stopped} has not answered within {TIMEOUT} s (ranks.timeout)"
    )
    assert time.monotonic() - begun < 4 * TIMEOUT, "about the timeout, on a machine that does nothing else"


def test_a_rank_that_has_finished_is_not_missed(settings: ModelSettings) -> None:
    listener = meeting_place(settings)
    port = int(listener.getsockname()[1])
    store = serve_store(settings, listener)
    first, second = (start(port, rank) for rank in range(2))
    for process in (first, second):
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n"
    _, errors = first.communicate("finish\n", timeout=60)
    assert (first.returncode, errors) == (0, "")
    time.sleep(1.2 * TIMEOUT)
    _, errors = second.communicate("finish\n", timeout=60)
    assert (second.returncode, errors) == (0, "")
    assert store.num_keys() >= 2


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="/proc is Linux's")
def test_the_ranks_meet_at_the_address_that_is_set_only(settings: ModelSettings) -> None:
    listener = meeting_place(settings)
    port = int(listener.getsockname()[1])
    environment = gloo_environment(listener)
    store = serve_store(settings, listener)
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if int(address.rpartition(":")[2], 16) == port and state == "0A":
                listening.append(address.partition(":")[0])
    assert listening == ["0100007F"]
    assert store.add("key", 1) == 1
    assert environment == {"GLOO_SOCKET_IFNAME": "lo"}


def test_a_port_in_use_is_told(settings: ModelSettings) -> None:
    with meeting_place(settings) as listener:
        ranks = settings.ranks.replace(master_port=int(listener.getsockname()[1]))
        with pytest.raises(UserError, match=r"ranks\.master_port: 127\.0\.0\.1:.* cannot be used"):
            meeting_place(replace(settings, ranks=ranks))


def test_torch_s_launcher_takes_our_rendezvous(settings: ModelSettings) -> None:
    listener = launch.meeting_place(settings)
    port = int(listener.getsockname()[1])
    rendezvous_handler_registry.register(launch._MEETING, launch._Meeting)
    config: dict[str, Any] = {"settings": settings, "listener": listener}
    parameters = RendezvousParameters(launch._MEETING, f"127.0.0.1:{port}", "run", 1, 1, **config)
    found = rendezvous_handler_registry.create_handler(parameters).next_rendezvous()
    assert (found.rank, found.world_size) == (0, 1)
    assert (found.bootstrap_store_info.master_addr, found.bootstrap_store_info.master_port) == ("127.0.0.1", port)
    found.store.set("key", "value")
    assert found.store.get("key") == b"value"
