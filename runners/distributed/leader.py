"""LeadingModel: rank 0 broadcasts each step and its arrays, and the other ranks run the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from enum import IntEnum
from typing import get_args

import numpy as np
import torch
import torch.distributed as dist

from graph_gemma.graph_model.bucket import Bucket, Phase, Selection, StepInputs, StepOutput
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.distributed.group import steps_group

# A bucket is sent as a number per field; of these fields it is the place among the names.
_NAMES: dict[str, tuple[str, ...]] = {"phase": get_args(Phase), "selection": get_args(Selection)}
BUCKET_SIZE = len(fields(Bucket))


class Message(IntEnum):
    """What rank 0 tells the others to do."""

    STOP = 0
    WARM_UP = 1  # the buckets that follow
    RUN = 2  # the bucket in the header, on the arrays that follow
    CHECK = 3  # the passes
    SEARCH = 4  # the last run of the bucket in the header, for numbers that are not finite


class LeadingModel(CompiledModel):
    """Rank 0's model: the other ranks do what it does. A step costs two broadcasts, of a header and of its arrays."""

    def warm_up(self, buckets: Iterable[Bucket]) -> None:
        buckets = list(buckets)
        self.announce(Message.WARM_UP, len(buckets))
        rows = torch.tensor([encode_bucket(bucket) for bucket in buckets], dtype=torch.int64)
        dist.broadcast(rows.view(len(buckets), BUCKET_SIZE), src=0)
        super().warm_up(buckets)

    def run(self, bucket: Bucket) -> StepOutput:
        self.announce(Message.RUN, *encode_bucket(bucket))
        dist.broadcast(_pack(self.inputs(bucket)), src=0)
        return super().run(bucket)

    def search(self, bucket: Bucket, rows: Sequence[int]) -> list[str]:
        self.announce(Message.SEARCH, *encode_bucket(bucket))
        return super().search(bucket, rows)

    def announce(self, message: Message, *numbers: int) -> None:
        """Tell the other ranks what comes."""
        header = torch.zeros(1 + BUCKET_SIZE, dtype=torch.int64)
        header[: 1 + len(numbers)] = torch.tensor([message, *numbers])
        dist.broadcast(header, src=0, group=steps_group())


def encode_bucket(bucket: Bucket) -> list[int]:
    """A number per field of the bucket."""
    values = asdict(bucket)
    return [_NAMES[name].index(value) if name in _NAMES else value for name, value in values.items()]


def decode_bucket(numbers: list[int]) -> Bucket:
    """The bucket that `encode_bucket` sent."""
    names = (field.name for field in fields(Bucket))
    values = {name: _NAMES[name][n] if name in _NAMES else n for name, n in zip(names, numbers, strict=True)}
    return Bucket(**values)  # type: ignore[arg-type]


def _pack(inputs: StepInputs) -> torch.Tensor:
    """The step's arrays one after the other, as bytes."""
    return torch.from_numpy(np.concatenate([array.reshape(-1).view(np.uint8) for array in inputs.arrays().values()]))


def receive(inputs: StepInputs) -> None:
    """Fill the arrays with those of rank 0."""
    packed = _pack(inputs)
    dist.broadcast(packed, src=0)
    start = 0
    for array in inputs.arrays().values():
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = packed[start : start + flat.size].numpy()
        start += flat.size
