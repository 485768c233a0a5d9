"""Steps of the torchair backend in the compile cache: found again, never stale, and made again to be seen or checked.
See support.standin_cases."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.checkpoints import make_checkpoint
from support.standin_cases import A2, DUO, Cases

from graph_model.chips.registry import find_soc
from runners.backends import torchair
from runners.backends.ascend import standin
from runners.backends.ascend.recording import recorded_graphs
from runners.backends.ascend.stored_step import StepInput, StoredStep
from runners.backends.base import Check
from runners.backends.torchair import AscendOptions, TorchairBackend
from runners.compile import step as step_module
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM

CASES = Cases()
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


def second_start_makes_nothing(soc: str, folder: Path) -> None:
    make_checkpoint(folder / "checkpoint", TINY, dtype=torch.float16)
    settings = (f"soc={soc}",)
    with recorded_graphs() as made:
        first, expected = start(folder, *settings)
    compiled, _ = counts(first)
    assert counts(first) == (len(made), 0)
    with nothing_is_made(), recorded_graphs() as loaded:
        second, found = start(folder, *settings)
    assert counts(second) == (0, compiled)
    assert found == expected
    assert sorted(graph.serialized for graph in loaded) == sorted(graph.serialized for graph in made)
    assert all(graph.options in [other.options for other in made] for graph in loaded)


@CASES.add(A2)
def a_second_start_lowers_nothing_on_the_a2(folder: Path) -> None:
    second_start_makes_nothing(A2, folder)
    one = PROMPTS[:1]
    other, _ = start(folder, "norm=fused", prompts=one)
    assert counts(other) == (2, 0), "another norm is another graph"
    off, _ = start(folder, "passes.rotary.enabled=false", prompts=one)
    assert counts(off) == (2, 0), "other passes make another graph"
    dumped, _ = start(folder, f"dump_dir={folder / 'dumps'}", prompts=one)
    assert counts(dumped) == (2, 0), "what is dumped is made"
    assert len(list((folder / "dumps").glob("*/lowered.txt"))) == 2
    checked, _ = start(folder, prompts=one, check="stop")
    assert counts(checked) == (2, 0), "what is checked is made"
    backend = checked.loaded.model.recipe.backend
    assert isinstance(backend, TorchairBackend)
    assert backend.checked_steps[0].findings.runs > 0
    for path in (folder / "cache" / "steps").iterdir():
        if not path.suffix:
            path.write_bytes(path.read_bytes()[:-50])
    again, _ = start(folder, prompts=one)
    assert counts(again) == (2, 0), "damaged entries are not used"


@CASES.add(DUO)
def a_second_start_lowers_nothing_on_the_duo(folder: Path) -> None:
    second_start_makes_nothing(DUO, folder)


@CASES.add(A2)
def the_key_knows_chip_norm_and_version(folder: Path) -> None:
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


@CASES.add(A2)
def a_stored_step_is_read_as_it_was_written(folder: Path) -> None:
    step = StoredStep(b"graph", {"a": "b"}, (StepInput(3, None), StepInput(0, (2, 4))), (1, 0), ((1, 0),))
    path, other = folder / "step", folder / "other"
    step.write(path)
    step.write(other)
    assert path.read_bytes() == other.read_bytes()
    assert StoredStep.read(path) == step
    assert {f.name for f in dataclasses.fields(step)} == {"serialized", "options", "inputs", "outputs", "assigned"}
    backend = TorchairBackend(AscendOptions(find_soc(A2), "exact"), folder)
    for content in (b"", b"not a step", path.read_bytes()[:60]):
        other.write_bytes(content)
        assert backend.load(other) is None


if __name__ == "__main__":
    CASES.main()
