"""Two processes on the CANN stand-in: the GE interpreter executes the lowered collectives over gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import rank_processes as ranks
from support.checkpoints import make_checkpoint, make_model
from support.configs import TINY_CONFIGS
from support.token_rule import check_greedy

pytestmark = [pytest.mark.ascend, pytest.mark.slow]
PROMPTS = [[5 + i, 7, *range(3, 9 + 7 * i)] for i in range(4)]


@pytest.mark.parametrize("soc", ["atlas_800i_a2", "atlas_300i_duo"])
def test_greedy_tokens_of_two_ranks_follow_the_token_rule(soc: str, tmp_path: Path) -> None:
    # Two ranks do not divide its vocabulary: the last one's part is filled up.
    config = replace(TINY_CONFIGS["odd_vocabulary"], num_hidden_layers=2, dtype="float16")
    make_checkpoint(tmp_path / "checkpoint", config, dtype=torch.float16)
    overrides = ["backend=torchair", f"soc={soc}", "world_size=2", "max_new_tokens=12", "dtype=float16"]
    process = ranks.start(ranks.arguments(tmp_path / "checkpoint", tmp_path, PROMPTS, *overrides))
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "2 ranks" in printed
    found = sorted(ranks.finished(tmp_path), key=lambda line: int(str(line["index"])))
    reference = make_model(config, dtype=torch.float16)
    answers = [line["token_ids"] for line in found]
    ties = [check_greedy(reference, *pair) for pair in zip(PROMPTS, answers, strict=True)]  # type: ignore[arg-type]
    assert sum(ties) <= 1
