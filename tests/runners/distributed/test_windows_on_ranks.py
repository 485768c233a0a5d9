"""Layers with a window on several ranks: all of them read the blocks that rank 0 names, in both pools."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import rank_processes as ranks
from support.checkpoints import make_checkpoint
from support.configs import LATER_CONFIGS
from support.token_rule import check_greedy

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
# Longer than the window and than a chunk, with a beginning that some share.
PROMPTS = [[5, *range(3, 73 + i), 9 + i] for i in range(0, 60, 12)] + [[7 + i, 8] for i in range(3)]
SIZES = ("block_size=16", "max_prefill_tokens=64", "max_prefill_batch_size=2", "max_batch_size=3", "max_seq_len=192")


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_tokens_of_two_ranks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", LATER_CONFIGS[name])
    settings = ["backend=eager", "world_size=2", "max_new_tokens=40", "num_blocks=24", *SIZES]
    process = ranks.start(ranks.arguments(tmp_path / "checkpoint", tmp_path, PROMPTS, *settings))
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "2 ranks" in printed
    assert "KV cache, windows:" in printed
    found = sorted(ranks.finished(tmp_path), key=lambda line: int(str(line["index"])))
    assert len(found) == len(PROMPTS)
    for prompt, line in zip(PROMPTS, found, strict=True):
        assert check_greedy(model, prompt, line["token_ids"]) == 0  # type: ignore[arg-type]
