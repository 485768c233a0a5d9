"""Steps of the torchair backend in the compile cache: found again, never stale, made again to be seen or checked."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import torchair_steps as steps
from support.checkpoints import make_checkpoint
from support.chip_processes import A2, DUO, on_each_chip

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.runners.backends import torchair
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.recording import recorded_graphs
from graph_gemma.runners.backends.ascend.stored_step import StepInput, StoredStep
from graph_gemma.runners.backends.base import Check
from graph_gemma.runners.backends.torchair import AscendOptions, TorchairBackend
from graph_gemma.runners.compile import step as step_module
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM

TINY = replace(steps.BASE, num_hidden_layers=1)
PROMPTS = [[5, 6, 7], list(range(3, 100))]


@contextmanager
def nothing_is_made() -> Iterator[None]:
    """Within, capturing and lowering fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "capture", None)
        patch.setattr(torchair, "lower", None)
        yield


def start(
    folder: Path, *settings: str, prompts: list[list[int]] = PROMPTS, check: Check = "no"
) -> tuple[LLM, list[list[int]]]:
    """A model that has answered, and its answers."""
    common = ["backend=torchair", f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]
    common += ["max_prefill_tokens=64", "max_prefill_batch_size=1", "max_batch_size=2", "max_seq_len=128"]
    llm = LLM([*common, *settings], check=check)
    sampling = SamplingParams(max_new_tokens=4, ignore_eos=True)
    llm.warm_up(prompts, sampling, once=True)
    return llm, [result.token_ids for result in llm.generate(prompts, sampling)]


def counts(llm: LLM) -> tuple[int, int]:
    report = llm.loaded.model.report
    return report.compiled, report.from_cache


@on_each_chip
def test_a_second_start_lowers_nothing(soc: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", TINY, dtype=torch.float16)
    settings = (f"soc={soc}",)
    with recorded_graphs() as made:
        first, expected = start(tmp_path, *settings)
    compiled, _ = counts(first)
    assert counts(first) == (len(made), 0)
    with nothing_is_made(), recorded_graphs() as loaded:
        second, found = start(tmp_path, *settings)
    assert counts(second) == (0, compiled)
    assert found == expected
    assert sorted(graph.serialized for graph in loaded) == sorted(graph.serialized for graph in made)
    assert all(graph.options in [other.options for other in made] for graph in loaded)


@pytest.mark.chip(A2)
def test_what_differs_is_seen_or_is_damaged_is_made_again(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", TINY, dtype=torch.float16)
    one = PROMPTS[:1]
    start(tmp_path, prompts=one)
    other, _ = start(tmp_path, "norm=fused", prompts=one)
    assert counts(other) == (2, 0), "another norm is another graph"
    off, _ = start(tmp_path, "passes.rotary.enabled=false", prompts=one)
    assert counts(off) == (2, 0), "other passes make another graph"
    dumped, _ = start(tmp_path, f"dump_dir={tmp_path / 'dumps'}", prompts=one)
    assert counts(dumped) == (2, 0), "what is dumped is made"
    assert len(list((tmp_path / "dumps").glob("*/lowered.txt"))) == 2
    checked, _ = start(tmp_path, prompts=one, check="stop")
    assert counts(checked) == (2, 0), "what is checked is made"
    backend = checked.loaded.model.recipe.backend
    assert isinstance(backend, TorchairBackend)
    assert backend.checked_steps[0].findings.runs > 0
    for path in (tmp_path / "cache" / "steps").iterdir():
        if not path.suffix:
            path.write_bytes(path.read_bytes()[:-50])
    again, _ = start(tmp_path, prompts=one)
    assert counts(again) == (2, 0), "damaged entries are not used"


@pytest.mark.chip(A2)
def test_the_key_knows_chip_norm_and_version() -> None:
    def fingerprint(soc: str = A2, norm: str = "exact") -> str:
        backend = object.__new__(TorchairBackend)  # a process loads one chip
        backend.options = AscendOptions(find_soc(soc), norm)
        return str(backend.fingerprint())

    found = [fingerprint(), fingerprint(DUO), fingerprint(norm="fused")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "0")
        found.append(fingerprint())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standin, "is_standin", lambda: False)
        found.append(fingerprint())
    assert len(set(found)) == 5, found


@pytest.mark.chip(A2)
def test_a_stored_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    step = StoredStep(b"graph", {"a": "b"}, (StepInput(3, None), StepInput(0, (2, 4))), (1, 0), ((1, 0),))
    path, other = tmp_path / "step", tmp_path / "other"
    step.write(path)
    step.write(other)
    assert path.read_bytes() == other.read_bytes()
    assert StoredStep.read(path) == step
    assert {f.name for f in dataclasses.fields(step)} == {"serialized", "options", "inputs", "outputs", "assigned"}
    backend = TorchairBackend(AscendOptions(find_soc(A2), "exact"), tmp_path)
    for content in (b"", b"not a step", path.read_bytes()[:60]):
        other.write_bytes(content)
        assert backend.load(other) is None
