"""Two thousand small requests on the demo model leave the process as large as it was."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from graph_gemma.runners.engine import SamplingParams
from graph_gemma.runners.llm import LLM

BEGINNINGS = ("One day", "One morning Oscar and Ivy walked to the forest.", "Early", "A busy day -- Ella went")


def resident_bytes() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def serve(llm: LLM, count: int, seed: int) -> None:
    """Requests of 2 to 6 tokens, greedy and sampled, some with stop strings or log-probabilities, some aborted."""
    rng = np.random.default_rng(seed)
    engine = llm.engine
    started = 0
    while started < count or engine.has_unfinished():
        while started < count and len(engine.scheduler.waiting) < 12:
            sampling = SamplingParams(
                temperature=float(rng.integers(0, 2)),
                max_new_tokens=int(rng.integers(2, 7)),
                stop=(".", "the") if rng.random() < 0.3 else (),
                logprobs=2 if rng.random() < 0.1 else None,
            )
            words = " ".join(f"w{number}" for number in rng.integers(0, 30, rng.integers(0, 4)))
            prompt = f"{BEGINNINGS[rng.integers(len(BEGINNINGS))]} {words}"
            request_id = engine.add_request(llm.encode(prompt), sampling, lambda event: None)
            if rng.random() < 0.1:
                engine.abort(request_id)
            started += 1
            engine.receive()
        engine.step()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_ends_where_it_began(tmp_path: Path) -> None:
    settings = ["backend=eager", "max_seq_len=128", "num_blocks=12", "block_size=16", "max_batch_size=4"]
    with LLM([*settings, "max_prefill_tokens=64", f"cache_dir={tmp_path}"]) as llm:
        llm.warm_up(sampling=[SamplingParams(temperature=t, logprobs=n) for t in (0.0, 1.0) for n in (None, 2)])
        compiled = llm.loaded.model.report.compiled
        serve(llm, 300, seed=0)  # by then all steps have run, and the cache of prefixes is full
        before = resident_bytes()
        serve(llm, 2000, seed=1)
        grown = resident_bytes() - before
        print(f"{grown / 1e6:+.1f} MB of {before / 1e6:.0f} MB")
        assert llm.engine.blocks.num_used == 0
        assert llm.engine.statistics.cached_prompt_tokens > 0
        assert llm.loaded.model.report.compiled == compiled, "a step was compiled after warm-up"
        assert grown < 4e6
