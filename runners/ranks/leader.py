"""The steps of rank 0 on all ranks: it says which step it runs and on what arrays, the others run the same."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, fields
from enum import IntEnum
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
import torch.distributed as dist

from graph_model.bucket import Bucket, Phase, Selection, StepInputs, StepOutput
from graph_model.compile import CompiledModel
from runners.ranks.group import steps_group

if TYPE_CHECKING:
    from runners.settings import ModelSettings

# A bucket is sent as a number per field; of these fields it is the place among the names.
_NAMES: dict[str, tuple[str, ...]] = {"phase": get_args(Phase), "selection": get_args(Selection)}
_BUCKET_SIZE = len(fields(Bucket))


class Message(IntEnum):
    """What rank 0 tells the others to do."""

    STOP = 0
    WARM_UP = 1  # the buckets that follow
    RUN = 2  # the bucket in the header, on the arrays that follow
    CHECK = 3  # the passes


class LeadingModel(CompiledModel):
    """Rank 0's model: whatever it does, the other ranks do. A step costs two broadcasts of its integer arrays."""

    def warm_up(self, buckets: Iterable[Bucket]) -> None:
        buckets = list(buckets)
        self.announce(Message.WARM_UP, len(buckets))
        rows = torch.tensor([_encode(bucket) for bucket in buckets], dtype=torch.int64)
        dist.broadcast(rows.view(len(buckets), _BUCKET_SIZE), src=0)
        super().warm_up(buckets)

    def run(self, bucket: Bucket) -> StepOutput:
        self.announce(Message.RUN, *_encode(bucket))
        dist.broadcast(_pack(self.inputs(bucket)), src=0)
        return super().run(bucket)

    def announce(self, message: Message, *numbers: int) -> None:
        """Tell the other ranks what comes."""
        header = torch.zeros(1 + _BUCKET_SIZE, dtype=torch.int64)
        header[: 1 + len(numbers)] = torch.tensor([message, *numbers])
        dist.broadcast(header, src=0, group=steps_group())


def follow(settings: ModelSettings) -> None:
    """Load this rank's part of the model and do what rank 0 does until it stops."""
    from runners.check import check_model_passes
    from runners.load import load_model

    with ExitStack() as resources:
        loaded = load_model(settings, resources)
        model = loaded.model
        header = torch.empty(1 + _BUCKET_SIZE, dtype=torch.int64)
        while True:
            dist.broadcast(header, src=0, group=steps_group())
            message, *numbers = header.tolist()
            if message == Message.STOP:
                return
            if message == Message.WARM_UP:
                rows = torch.empty(numbers[0], _BUCKET_SIZE, dtype=torch.int64)
                dist.broadcast(rows, src=0)
                model.warm_up([_decode(row) for row in rows.tolist()])
            elif message == Message.RUN:
                bucket = _decode(numbers)
                _receive(model.inputs(bucket))
                model.run(bucket)
            else:
                check_model_passes(loaded)


def _encode(bucket: Bucket) -> list[int]:
    values = asdict(bucket)
    return [_NAMES[name].index(value) if name in _NAMES else value for name, value in values.items()]


def _decode(numbers: list[int]) -> Bucket:
    names = (field.name for field in fields(Bucket))
    values = {name: _NAMES[name][n] if name in _NAMES else n for name, n in zip(names, numbers, strict=True)}
    return Bucket(**values)  # type: ignore[arg-type]


def _pack(inputs: StepInputs) -> torch.Tensor:
    """The step's arrays one after the other, as bytes."""
    return torch.from_numpy(np.concatenate([array.reshape(-1).view(np.uint8) for array in inputs.arrays().values()]))


def _receive(inputs: StepInputs) -> None:
    """Fill the arrays with those of rank 0."""
    packed = _pack(inputs)
    dist.broadcast(packed, src=0)
    start = 0
    for array in inputs.arrays().values():
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = packed[start : start + flat.size].numpy()
        start += flat.size
