"""Start the ranks of this machine through torch's elastic agent, which ends them all when one fails."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import SignalException
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.parent_process import PARENT
from graph_gemma.runners.settings.model_settings import ModelSettings, check_devices

_MEETING = "graph_gemma"  # the name of our rendezvous among torch's
_SHUTDOWN_S = 5  # from SIGTERM to SIGKILL


def start_ranks(settings: ModelSettings) -> None:
    """Run this process's own command on `world_size` ranks and wait for them.

    When a rank fails all are ended. What the rank said of its failure is on stderr already if it ended with status 2
    (a UserError), and this process ends with 2 as well; otherwise it says which rank failed and ends with 1.
    Raises UserError for too few devices or a port in use, KeyboardInterrupt when interrupted, with all ranks ended.
    """
    check_devices(settings, settings.world_size)
    listener = meeting_place(settings)
    port = int(listener.getsockname()[1])
    os.environ.update(gloo_environment(listener))
    rendezvous_handler_registry.register(_MEETING, _Meeting)
    # The agent's warnings and tracebacks say less than the message below.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(settings.world_size)))
    os.environ[PARENT] = str(os.getpid())
    with tempfile.TemporaryDirectory(prefix="graph_gemma_ranks_") as log_dir:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=settings.world_size,
            run_id=uuid.uuid4().hex,
            rdzv_backend=_MEETING,
            rdzv_endpoint=f"{settings.ranks.master_address}:{port}",
            rdzv_configs={"settings": settings, "listener": listener},
            local_addr=settings.ranks.master_address,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=log_dir),
            shutdown_timeout=_SHUTDOWN_S,
        )
        sys.stdout.flush()
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode != 2:
                what = describe_end(rank, failure.pid, failure.exitcode)
                print(f"error: {what} Finished requests are in output_file, if one was given.", file=sys.stderr)
            sys.exit(2 if failure.exitcode == 2 else 1)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)


def describe_end(rank: int, process: int, exitcode: int) -> str:
    """The message about the rank whose end made all others end."""
    how = f"was ended by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with status {exitcode}"
    return f"rank {rank} (process {process}) {how}, so all ranks were ended."


def threads_per_rank(world_size: int) -> int:
    """The machine's cores shared among the ranks; torchrun gives each one."""
    return max(1, len(os.sched_getaffinity(0)) // world_size) if hasattr(os, "sched_getaffinity") else 1


def meeting_place(settings: ModelSettings) -> socket.socket:
    """A socket that listens at the ranks' address and port, a free one if the setting is null, and nowhere else.

    Raises UserError if the port is in use.
    """
    address, port = settings.ranks.master_address, settings.ranks.master_port
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port or 0))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"ranks.master_port: {address}:{port} cannot be used ({error.strerror}); another run may have it. "
            "Give another port, or ranks.master_port=null for a free one."
        ) from None
    return listener


def gloo_environment(listener: socket.socket) -> dict[str, str]:
    """What the ranks' environment needs so that gloo stays on the loopback interface where the ranks meet there.

    Gloo would choose an interface by the host's name.
    """
    loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    needed = sys.platform == "linux" and loopback and "GLOO_SOCKET_IFNAME" not in os.environ
    return {"GLOO_SOCKET_IFNAME": "lo"} if needed else {}


def serve_store(settings: ModelSettings, listener: socket.socket) -> dist.TCPStore:
    """The store where the ranks meet, on a socket of `meeting_place`; torch's own would listen on all interfaces."""
    port, timeout = int(listener.getsockname()[1]), timedelta(seconds=settings.ranks.timeout)
    return dist.TCPStore(
        settings.ranks.master_address,
        port,
        None,
        True,
        timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


class _Meeting(StaticTCPRendezvous):
    """torch's static rendezvous of one machine, with a store on the socket that is given."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        settings, listener = parameters.config["settings"], parameters.config["listener"]
        address, port = settings.ranks.master_address, int(listener.getsockname()[1])
        super().__init__(address, port, 0, 1, parameters.run_id, settings.ranks.timeout)
        self._store = serve_store(settings, listener)

    def get_backend(self) -> str:
        return _MEETING
