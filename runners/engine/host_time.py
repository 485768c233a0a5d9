"""Host time (scheduling, sampling set-up, text) per decode step, measured with a model that does nothing.

``python runners/benchmark.py phase=host``; with a profile:
``python -m graph_gemma.runners.engine.host_time --profile``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from graph_gemma.graph_model.bucket import BucketTable, powers_of_two
from graph_gemma.runners.engine.engine import Engine
from graph_gemma.runners.engine.null_model import NullModel
from graph_gemma.runners.engine.sampling_params import SamplingParams

_BLOCK_SIZE = 64
_MAX_SEQ_LEN = 8192
_STEPS = 256


def null_model(batch: int) -> NullModel:
    """With room for `batch` sequences of full length."""
    buckets = BucketTable(
        batch_sizes=powers_of_two(1, batch),
        prefill_batch_sizes=powers_of_two(1, min(batch, 8)),
        chunk_lengths=powers_of_two(16, 512),
        table_widths=powers_of_two(4, _MAX_SEQ_LEN // _BLOCK_SIZE),
        max_step_tokens=1024,
    )
    scratch = -(-buckets.num_scratch_slots // _BLOCK_SIZE)
    blocks = scratch + batch * _MAX_SEQ_LEN // _BLOCK_SIZE
    return NullModel(buckets, _BLOCK_SIZE, scratch, blocks, _MAX_SEQ_LEN)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def decode_steps(
    batch: int, context: int, sampling: SamplingParams, with_text: bool = True
) -> Iterator[tuple[float, float]]:
    """(wall, CPU) seconds of each decode step of a full batch that begins at `context` tokens."""
    engine = Engine(null_model(batch), byte_tokenizer() if with_text else None)
    rng = np.random.default_rng(0)
    for _ in range(batch):
        engine.add_request(rng.integers(0, 255, context).tolist(), sampling)
    while engine.statistics.decode_steps == 0 or len(engine.scheduler.decoding) < batch:
        engine.step()
    for _ in range(_STEPS):
        wall, cpu = time.perf_counter(), time.thread_time()
        engine.step()
        yield time.perf_counter() - wall, time.thread_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="profile batch 64, sampled, instead")
    if parser.parse_args().profile:
        _profile()
    else:
        print_host_time()


def print_host_time() -> None:
    """Print the table of docs/engine.md."""
    print("host time per decode step in us: median of wall time (mean of CPU time)")
    print(f"{'batch':>5} {'context':>8} {'greedy':>14} {'no text':>14} {'sampled':>14} {'stop strings':>14}")
    for batch in (1, 8, 64):
        for context in (100, 1000, 4000, 7500):
            cells = []
            for sampling, with_text in _settings():
                wall, cpu = zip(*decode_steps(batch, context, sampling, with_text), strict=True)
                cells.append(f"{statistics.median(wall) * 1e6:.0f} ({statistics.fmean(cpu) * 1e6:.0f})")
            print(f"{batch:>5} {context:>8} " + " ".join(f"{cell:>14}" for cell in cells), flush=True)


def _settings() -> list[tuple[SamplingParams, bool]]:
    steps = 2 * _STEPS  # some requests are ahead of the others when the measured steps begin
    greedy = SamplingParams(max_new_tokens=steps)
    sampled = SamplingParams(temperature=1.0, top_k=40, top_p=0.9, seed=1, max_new_tokens=steps)
    return [
        (greedy, True),
        (greedy, False),
        (sampled, True),
        (SamplingParams(max_new_tokens=steps, stop=("\n\n", "Question:")), True),
    ]


def _profile() -> None:
    profile = cProfile.Profile()
    steps = decode_steps(64, 1000, _settings()[2][0])
    next(steps)
    profile.enable()
    for _ in steps:
        pass
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
