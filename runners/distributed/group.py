"""Form the process group: this process's rank and device, and the check that all ranks have the same settings."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from graph_gemma.graph_model.checkpoint.identity import checkpoint_identity
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.parent_process import is_rank
from graph_gemma.runners.compile.cache import source_digest
from graph_gemma.runners.distributed.heartbeat import Heartbeat, OnSilent, end_this_rank
from graph_gemma.runners.settings.model_settings import ModelSettings, check_devices

# A rank that fails, or that sees another one gone, waits this long: the launcher stops it sooner if the fault is not
# its own, and one message is printed, not one per rank.
_PATIENCE_S = 5.0
# Between two steps the others wait as long as rank 0's program pleases; that it has ended or is stopped, they see.
_PAUSE = timedelta(days=365)
_DIGEST_BYTES = 32
_FAULT_BYTES = 1024  # of a rank's message, most
READY = "ready"  # in the store: how many ranks have their device

_steps: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Place:
    """This process's rank."""

    rank: int
    world_size: int
    local_rank: int  # among the ranks of its machine
    local_world_size: int


def find_place() -> Place | None:
    """This process's place as its launcher (torchrun, or `start_ranks`) says; None: it has none."""
    if not is_rank():
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def join(settings: ModelSettings, place: Place, store: dist.TCPStore | None = None) -> Iterator[None]:
    """Form the process group in a process that is a rank and nothing else.

    Inside the block an error is raised by the rank whose fault it is, and names it.
    """
    with contextlib.ExitStack() as stack:
        if place.rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(_named_errors(place.rank))
        heartbeat = form_group(settings, place, end_this_rank(settings.ranks.timeout, launched=store is None), store)
        yield
        heartbeat.stop()
        # Not after an error: the others would lose contact before this process has ended, and told why.
        dist.destroy_process_group()


def form_group(
    settings: ModelSettings, place: Place, on_silent: OnSilent, store: dist.TCPStore | None = None
) -> Heartbeat:
    """Form the process group of all ranks and check that they were started with the same settings.

    on_silent: what is done about a rank that is stopped, see Heartbeat, which is returned for its end.
    store: where they meet; None: the launcher stands at MASTER_ADDR and MASTER_PORT. Host arrays travel over gloo, the
    graphs' collectives over the device's own library. Raises UserError.
    """
    backend = _prepare_device(settings, place)
    if store is not None and place.rank:
        store.add(READY, 1)
    timeout = timedelta(seconds=settings.ranks.timeout)
    dist.init_process_group(backend, timeout=timeout, world_size=place.world_size, rank=place.rank, store=store)
    host = os.environ["MASTER_ADDR"] if store is None else store.host
    port = int(os.environ["MASTER_PORT"]) if store is None else store.port
    heartbeat = Heartbeat(host, port, place.rank, place.world_size, settings.ranks.timeout, on_silent)
    _check_agreement(settings, place)
    global _steps
    _steps = dist.new_group(backend="gloo", timeout=_PAUSE)
    return heartbeat


def steps_group() -> dist.ProcessGroup | None:
    """The group over which rank 0 says what comes next."""
    return _steps


def settings_digest(settings: ModelSettings) -> bytes:
    """What must be equal on all ranks: the settings but for paths, the checkpoint's files, the sources, torch.

    Raises UserError if the checkpoint cannot be read.
    """
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    for name in ("checkpoint_dir", "cache_dir", "cache_limit", "dump_dir", "memory_fraction", "ranks"):
        del fields[name]
    directory = None if settings.random_weights else settings.checkpoint_dir
    checkpoint = "" if directory is None else checkpoint_identity(directory)
    text = repr(sorted(fields.items())) + checkpoint + source_digest("runners") + torch.__version__
    return hashlib.sha256(text.encode()).digest()


def _check_agreement(settings: ModelSettings, place: Place) -> None:
    """Raise UserError on every rank if one cannot read its checkpoint, or differs from rank 0 in what must be equal."""
    digest, fault = bytes(_DIGEST_BYTES), ""
    try:
        digest = settings_digest(settings)
    except UserError as error:
        fault = str(error)
    text = fault.encode()[:_FAULT_BYTES]
    mine = torch.frombuffer(bytearray(digest + text.ljust(_FAULT_BYTES, b"\0")), dtype=torch.uint8)
    gathered = [torch.empty_like(mine) for _ in range(place.world_size)]
    dist.all_gather(gathered, mine)
    said = [bytes(row.tolist()) for row in gathered]
    for rank, row in enumerate(said):
        told = row[_DIGEST_BYTES:].rstrip(b"\0").decode(errors="ignore")
        if told:
            raise UserError(told if rank in (0, place.rank) else f"rank {rank}: {told}")
    others = [rank for rank, row in enumerate(said) if row != said[0]]
    if others:
        raise UserError(
            f"The ranks were started with different settings: rank {', '.join(map(str, others))} differs from rank 0 "
            "in config.json, the files of the weights, a setting, this package's sources or torch's version. Give "
            "every rank the same."
        )


def _prepare_device(settings: ModelSettings, place: Place) -> str:
    """Take this rank's device and return the process group's backend for it. Raises UserError."""
    check_devices(settings, place.local_world_size)
    if settings.backend == "torchair":
        assert settings.soc is not None
        from graph_gemma.runners.backends.ascend import standin

        if standin.load(settings.soc, settings.cache_dir):
            return "gloo"  # the stand-in's device is the host, and there is one per process
        npu = torch.get_device_module("npu")
        npu.set_device(_device_index(settings, place, npu.device_count()))
        return "cpu:gloo,npu:hccl"
    if not torch.cuda.is_available():
        return "gloo"
    torch.cuda.set_device(_device_index(settings, place, torch.cuda.device_count()))
    return "cpu:gloo,cuda:nccl"


def _device_index(settings: ModelSettings, place: Place, count: int) -> int:
    """The device of this rank, of `count` that this machine has; a chip is a device, so some cards are several."""
    check_devices(settings, place.local_world_size, count)
    devices = settings.ranks.devices
    return place.local_rank if devices is None else devices[place.local_rank]


@contextlib.contextmanager
def _named_errors(rank: int) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if rank == 0:
            raise
        time.sleep(_PATIENCE_S)  # an error that all ranks have is told by rank 0
        raise UserError(f"rank {rank}: {error}") from error
    except Exception as error:
        if not is_lost_contact(error):
            raise
        time.sleep(_PATIENCE_S)
        print(f"error: rank {rank} lost contact with another rank: {error}", file=sys.stderr)
        sys.exit(1)


def is_lost_contact(error: BaseException | None) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "connection closed by peer"))
