"""Ranks above 0: load their part of the model and run the steps that rank 0 announces."""

from __future__ import annotations

import pickle
import sys
from contextlib import ExitStack
from datetime import timedelta

import torch
import torch.distributed as dist

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.distributed.group import join, steps_group
from graph_gemma.runners.distributed.leader import BUCKET_SIZE, Message, decode_bucket, receive
from graph_gemma.runners.llm.check import check_model_passes
from graph_gemma.runners.llm.load import load_model
from graph_gemma.runners.settings.model_settings import ModelSettings


def follow(settings: ModelSettings) -> None:
    """Load this rank's part of the model and do what rank 0 does until it stops."""

    with ExitStack() as resources:
        loaded = load_model(settings, resources)
        model = loaded.model
        header = torch.empty(1 + BUCKET_SIZE, dtype=torch.int64)
        while True:
            dist.broadcast(header, src=0, group=steps_group())
            message, *numbers = header.tolist()
            if message == Message.STOP:
                return
            if message == Message.WARM_UP:
                rows = torch.empty(numbers[0], BUCKET_SIZE, dtype=torch.int64)
                dist.broadcast(rows, src=0)
                model.warm_up([decode_bucket(row) for row in rows.tolist()])
            elif message == Message.RUN:
                bucket = decode_bucket(numbers)
                receive(model.inputs(bucket))
                model.run(bucket)
            elif message == Message.SEARCH:
                model.search(decode_bucket(numbers), [])
            else:
                check_model_passes(loaded)


def main() -> None:
    """A follower, as `lead_followers` starts it: its own parent wrote what is unpickled."""
    settings, place, port = pickle.load(sys.stdin.buffer)
    timeout = timedelta(seconds=settings.ranks.timeout)
    store = dist.TCPStore(settings.ranks.master_address, port, None, False, timeout)
    try:
        with join(settings, place, store):
            follow(settings)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
