"""Whatever executes a step, logits that are not finite end their request with an error that says where that began."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import rank_processes as ranks
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from support.overflow import POISON, check_message, save_overflowing_checkpoint
from support.standin_commands import answers_in, command

from runners.backends.ascend import standin
from runners.infer import infer

GOOD = [5, 6, 7, 8]
BAD = [*GOOD, POISON]
SIZES = ("max_batch_size=2", "max_prefill_batch_size=2", "max_prefill_tokens=64", "max_seq_len=64", "max_new_tokens=3")
PROMPTS = f"prompt_token_ids=[{GOOD},{BAD}]".replace(" ", "")


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
