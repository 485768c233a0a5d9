"""Whatever executes a step, logits that are not finite end their request with an error that says where that began."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import rank_processes as ranks
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from support.models import build_model
from support.overflow import POISON, check_message, make_overflowing_model, save_overflowing_checkpoint
from support.standin_commands import answers_in, command

from graph_gemma.graph_model.bucket import BucketTable
from graph_gemma.graph_model.errors import NotFiniteError
from graph_gemma.graph_model.ops.tokens import greedy_token
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.inductor import InductorBackend, cpp_compiler
from graph_gemma.runners.compile import CompileCache
from graph_gemma.runners.engine import EngineDriver, SamplingParams
from graph_gemma.runners.infer import infer

GOOD = [5, 6, 7, 8]
BAD = [*GOOD, POISON]
SIZES = ("max_batch_size=2", "max_prefill_batch_size=2", "max_prefill_tokens=64", "max_seq_len=64", "max_new_tokens=3")
PROMPTS = f"prompt_token_ids=[{GOOD},{BAD}]".replace(" ", "")


@pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_inductor(temperature: float, tmp_path: Path) -> None:
    config = steps.UNTIED
    backend = InductorBackend(torch.device("cpu"), tmp_path / "kernels")
    model = build_model(
        backend,
        make_overflowing_model(config),
        config,
        BucketTable((2,), (2,), (8,), (2,), 16),
        num_blocks=4,
        max_seq_len=32,
        dtype=torch.float16,
        cache=CompileCache(tmp_path / "steps"),
    )
    sampling = SamplingParams(temperature, seed=1, max_new_tokens=3)
    good, bad = EngineDriver(model, vocab_size=config.vocab_size).generate([GOOD, BAD], sampling)
    assert (good.finish_reason, len(good.token_ids)) == ("length", 3)
    assert (bad.finish_reason, bad.token_ids) == ("error", [])
    assert isinstance(bad.error, NotFiniteError)
    check_message(bad.error)


@pytest.mark.skipif(cpp_compiler() is None, reason="Inductor needs a C++ compiler")
@pytest.mark.slow
def test_marking_rows_costs_at_most_half_a_percent_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Of Gemma-2B's, which reads 5.01 GB of weights: an eighth of its head is multiplied, and the time scaled up."""
    logits, hidden = torch.randn(1, 256_000).bfloat16(), torch.randn(1, 256).bfloat16()
    head = torch.randn(256_000, 256).bfloat16()
    marking, choosing = torch.compile(greedy_token), torch.compile(lambda logits: logits.argmax(-1))
    seconds = [shortest(lambda: marking(logits)), shortest(lambda: choosing(logits)), shortest(lambda: hidden @ head.T)]
    step = seconds[2] * 5.01e9 / head.nbytes
    with capsys.disabled():
        print(f"\nmarking and choosing {seconds[0]:.1e} s, choosing {seconds[1]:.1e} s, a step {step:.1e} s")
    assert seconds[0] - seconds[1] <= 0.005 * step


def shortest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of many runs."""
    found = []
    for _ in range(100):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def test_two_ranks(tmp_path: Path) -> None:
    """Both search, as the graphs that are run again exchange numbers; and both go on with the other request."""
    save_overflowing_checkpoint(tmp_path / "model", steps.UNTIED)
    process = ranks.start(ranks.arguments(tmp_path / "model", tmp_path, [GOOD, BAD], *SIZES, "world_size=2"))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1, errors
    check_message(errors)
    (good,) = answers_in(tmp_path / "out.jsonl")
    assert (good["index"], good["finish_reason"], len(good["token_ids"])) == (0, "length", 3)


@pytest.mark.chip
@pytest.mark.parametrize("soc", [A2, pytest.param(DUO, marks=pytest.mark.slow)])
def test_ascend_graphs_on_the_stand_in(soc: str, tmp_path: Path) -> None:
    """With and without the comparison of every node, which NaN in both graphs passes."""
    save_overflowing_checkpoint(tmp_path / "model", steps.UNTIED)
    answered = []
    for check in ("false", "true") if soc == A2 else ("false",):
        settings = [f"model.path={tmp_path / 'model'}", "backend=torchair", f"soc={soc}", *SIZES, f"check={check}"]
        settings += [f"cache_dir={tmp_path / 'cache'}", f"output_file={tmp_path / f'{check}.jsonl'}", "ignore_eos=true"]
        status, printed, errors = command(infer, "infer", *settings, PROMPTS)
        assert standin.BANNER in printed
        assert status == 1, errors
        check_message(errors)
        (good,) = answers_in(tmp_path / f"{check}.jsonl")
        assert (good["index"], good["finish_reason"], len(good["token_ids"])) == (0, "length", 3)
        answered.append(good["token_ids"])
    assert answered[0] == answered[-1]


def test_check_on_the_host(tmp_path: Path) -> None:
    """check=true compares passes and answers; a request that failed has none to compare."""
    save_overflowing_checkpoint(tmp_path / "model", steps.UNTIED)
    settings = [f"model.path={tmp_path / 'model'}", "backend=eager", f"cache_dir={tmp_path / 'cache'}", "check=true"]
    status, _, errors = command(infer, "infer", *settings, *SIZES, PROMPTS)
    assert status == 1, errors
    check_message(errors)
