"""A program leads the ranks that its model starts: the same answers and scores as alone, and no leftovers."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import rank_processes as ranks
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.distributed import group
from graph_gemma.runners.engine import SamplingParams, ScoreRequest
from graph_gemma.runners.llm import LLM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PROMPTS = [[5 + i, 7, *range(3, 9 + 7 * i)] for i in range(3)]
ANSWER = SamplingParams(max_new_tokens=6, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=4, max_new_tokens=6, ignore_eos=True)
REQUESTS = [ScoreRequest.continuation(PROMPTS[1][:3], PROMPTS[2][3:]), ScoreRequest(PROMPTS[0], [0, 2, 5])]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("followers")
    make_checkpoint(directory / "checkpoint", TINY_CONFIGS["one_kv_head"])
    paths = [f"model.path={directory / 'checkpoint'}", f"cache_dir={directory / 'cache'}"]
    return [*paths, "backend=eager", "ranks.master_port=null"]


def children() -> set[int]:
    """Processes that this one has started and that run."""
    found = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return {pid for pid in found if ranks.is_alive(pid)}


def test_answers_and_scores_are_those_of_one_rank(settings: list[str]) -> None:
    before = children()
    found = []
    for world_size in (1, 2):
        with LLM([*settings, f"world_size={world_size}"]) as llm:
            assert len(children()) == len(before) + world_size - 1
            answers = [result.token_ids for how in (ANSWER, SAMPLED) for result in llm.generate(PROMPTS, how)]
            found.append((answers, llm.score(REQUESTS)))
            if world_size > 1:
                with pytest.raises(UserError, match="belongs to a group of ranks already"):
                    LLM([*settings, "world_size=2"])
    assert children() == before
    assert not dist.is_initialized()
    (answers_of_one, scores_of_one), (answers_of_two, scores_of_two) = found
    assert answers_of_two == answers_of_one
    for ours, theirs in zip(scores_of_two, scores_of_one, strict=True):
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)


def test_a_fault_of_one_rank_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that one rank cannot read, for instance."""
    monkeypatch.setattr(group, "_PATIENCE_S", 0.0)
    with pytest.raises(UserError, match=r"rank 3: model\.safetensors cannot be read"), group._named_errors(3):
        raise UserError("model.safetensors cannot be read")


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named(settings: list[str]) -> None:
    threads = torch.get_num_threads()
    before = children()
    named = pytest.raises(ChildProcessError, match=r"rank 1 \(process \d+\) was ended by SIGKILL")
    with named, LLM([*settings, "world_size=2"]) as llm:
        llm.generate(PROMPTS, ANSWER)
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        llm.generate(PROMPTS, ANSWER)
    assert children() == before
    assert not dist.is_initialized()
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_program_may_let_ranks_wait_beyond_their_timeout(settings: list[str]) -> None:
    with LLM([*settings, "world_size=2", "ranks.timeout=5"]) as llm:
        first = [result.token_ids for result in llm.generate(PROMPTS, ANSWER)]
        time.sleep(8)
        assert [result.token_ids for result in llm.generate(PROMPTS, ANSWER)] == first


ENDS_WHILE_ITS_RANKS_START = """
import os, signal, subprocess, threading, time
from graph_gemma.runners.llm import LLM

started = threading.Event()
popen = subprocess.Popen

def start(command, **options):
    if "graph_gemma.runners.llm.follower" not in command:
        return popen(command, **options)
    process = popen(command, **options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(process.pid, flush=True)
    started.set()
    return process

def end():
    started.wait()
    time.sleep({after_s})
    os.kill(os.getpid(), signal.SIGKILL)

subprocess.Popen = start
threading.Thread(target=end).start()
LLM({settings})
"""


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.1, 1.0, 3.0])
def test_a_program_that_ends_while_its_ranks_start_leaves_none(
    settings: list[str], tmp_path: Path, after_s: float
) -> None:
    """At once, while they import torch, and while they join."""
    program = tmp_path / "program.py"
    program.write_text(ENDS_WHILE_ITS_RANKS_START.format(after_s=after_s, settings=[*settings, "world_size=2"]))
    process = ranks.start([str(program)])
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == -9
    assert len(printed.split()) == 1
    ranks.wait_until_ended({1: int(printed)})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt"])
def test_the_end_of_the_program_ends_the_ranks(settings: list[str], how: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = ["import os, signal, sys", "from pathlib import Path", "from graph_gemma.runners.llm import LLM"]
    lines += [f"llm = LLM({[*settings, 'world_size=2']})", "llm.generate([5, 6, 7])"]
    lines += ["children = Path(f'/proc/self/task/{os.getpid()}/children').read_text()", "print(children, flush=True)"]
    program.write_text("\n".join([*lines, how]))
    process = ranks.start([str(program)])
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == {"sys": 3, "os.": -9, "rai": 1}[how[:3]], errors
    assert len(printed.split()) == 1
    ranks.wait_until_ended({1: int(printed)})
