"""The demo model on the stand-in: its answers, its steps under level 2's checks, its speed. See support.standin_cases.

Its answers are written to a file for the test module, which compares them with Inductor's and transformers'.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import graph_model  # noqa: F401  (before torch)

from support.standin_cases import A2, DUO, Case, Cases  # isort: skip
from token_cases import run_infer

from runners.demo.world import demo_prompts, held_out_stories
from runners.llm.answer import answer

CASES = Cases()
# float16, which both chips have, and one request at a time, so that few steps are compiled.
ANSWERING = ("dtype=float16", "max_batch_size=1", "max_prefill_batch_size=1")
STEPS_PER_SECOND = 20


def write_answers(soc: str, file: Path, folder: Path) -> None:
    """Let the command answer the demo's prompts, and keep what it printed and wrote.

    A step of one request takes at most 1/20 s of one core: other processes do not count.
    """
    seconds = 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal seconds
        start = time.process_time()
        results = answer(*arguments)
        seconds = time.process_time() - start
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.llm.answer.answer", timed)
        printed, answers = run_infer(folder, "backend=torchair", f"soc={soc}", *ANSWERING)
    file.write_text(json.dumps({"printed": printed, "answers": answers}), encoding="utf-8")
    steps = sum(len(answer["token_ids"]) for answer in answers)
    assert seconds > 0
    assert steps / seconds >= STEPS_PER_SECOND, f"{steps} steps in {seconds:.2f} s"


def check_passes_on_the_demo(soc: str, folder: Path) -> None:
    """Chunks, a prefix that the second prompt finds in the cache, and decode, each run checked node by node."""
    story = held_out_stories(1)[0]
    prompts = [f"{story}\n\n{demo_prompts()[-1]}", f"{story} One day"]
    settings = [f"prompts={json.dumps(prompts)}", "max_new_tokens=4", "ignore_eos=true", "check=true"]
    settings += ["max_prefill_tokens=64", "max_seq_len=256", "max_batch_size=1", "max_prefill_batch_size=1"]
    settings += ["dtype=float16"] if soc == DUO else []
    printed, answers = run_infer(folder, "backend=torchair", f"soc={soc}", *settings)
    lengths = [len(answer["prompt_token_ids"]) for answer in answers]
    assert all(64 < length <= 192 for length in lengths), lengths
    # Only the first prompt's first chunk finds nothing in the cache.
    chunks = sum(-(-length // 64) for length in lengths)
    for bucket, runs in (("prefill-b1-t64", 1), ("extend-b1-t64-w4", chunks - 2), ("decode-b1-w4", 6)):
        assert f"check: lowered graph of {bucket} equals the graph that was lowered in {runs} runs" in printed, printed
    kernels = "ascend_fused_attention" if soc == A2 else "ascend_flat_attention"
    assert f"check: {kernels} (tolerant) holds on 4 graphs" in printed, printed
    assert "check: 8 tokens equal the plain model's" in printed, printed


for _soc in (A2, DUO):
    CASES[f"demo_under_checks_on_{_soc}"] = Case(_soc, lambda folder, soc=_soc: check_passes_on_the_demo(soc, folder))
