"""Quantised runs of infer.py on two ranks: the answers of one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import rank_processes as ranks

from graph_model.config import read_config
from graph_model.demo import CHECKPOINT_DIR
from graph_model.demo.tokenizer import load_tokenizer
from graph_model.demo.world import calibration_texts
from graph_model.quantisation import Quantisation, select_linears
from graph_model.quantiser import QuantiserOptions, quantise_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
NEEDS_TORCH_NPU = [
    pytest.mark.ascend,
    pytest.mark.skipif(importlib.util.find_spec("torch_npu") is None, reason="torch_npu is not installed"),
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"),
]
PROMPTS = [[2, 5 + i, 7, *range(30, 36 + 7 * i)] for i in range(3)]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in w8a8, all projections in int8: ranks sum integers, so that they give one rank's tokens."""
    target = tmp_path_factory.mktemp("quantised") / "demo"
    config = read_config(CHECKPOINT_DIR)
    options = QuantiserOptions(Quantisation("w8a8", select_linears(config, ["lm_head"]), stored=True))
    tokenizer = load_tokenizer(CHECKPOINT_DIR)
    quantise_checkpoint(CHECKPOINT_DIR, target, options, [tokenizer.encode(t).ids for t in calibration_texts(2)])
    return target


@pytest.mark.parametrize(
    "overrides",
    [
        ["backend=eager", "dtype=bfloat16"],
        ["backend=inductor", "dtype=bfloat16", "quant.kv8=true"],
        pytest.param(["backend=torchair", "dtype=float16", "quant.kv8=true"], marks=NEEDS_TORCH_NPU),
        pytest.param(["backend=torchair", "dtype=bfloat16"], marks=NEEDS_TORCH_NPU),
    ],
    ids=["eager", "inductor-kv8", "standin-kv8", "standin"],
)
def test_answers_of_two_ranks_are_those_of_one(checkpoint: Path, tmp_path: Path, overrides: list[str]) -> None:
    answers = []
    for world_size in (1, 2):
        directory = tmp_path / str(world_size)
        directory.mkdir()
        sizes = [f"world_size={world_size}", f"max_new_tokens={NEW_TOKENS}", "max_seq_len=128", "max_batch_size=4"]
        process = ranks.start(ranks.arguments(checkpoint, directory, PROMPTS, *overrides, *sizes))
        printed, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors
        assert ("2 ranks" in printed) == (world_size == 2)
        found = sorted(ranks.finished(directory), key=lambda line: int(str(line["index"])))
        answers.append([line["token_ids"] for line in found])
    assert [len(answer) for answer in answers[0]] == [NEW_TOKENS] * len(PROMPTS)  # type: ignore[arg-type]
    assert answers[0] == answers[1]
