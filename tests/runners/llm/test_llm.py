"""LLM from settings: the documented example runs, tokens are those of transformers, wrong settings are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS
from support.token_rule import check_greedy

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine import SamplingParams
from graph_gemma.runners.llm import LLM

DOC = Path(__file__).resolve().parents[3] / "docs" / "engine.md"


def test_the_documented_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    printed = []
    for block in blocks:
        exec(compile(block, str(DOC), "exec"), namespace)
        printed.append(capsys.readouterr().out)
    assert re.search(r" (stop|length)\n$", printed[0])
    assert printed[1].strip()
    assert "\n" not in printed[1]
    assert printed[2].count(".") == 2, "each task stopped at its first sentence"


def test_the_example_in_readme_prints_two_stories(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [block] = re.findall(r"```python\n(.*?)```", (DOC.parents[1] / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert len([line for line in capsys.readouterr().out.splitlines() if line.strip()]) >= 2


def test_a_checkpoint_by_settings_follows_transformers(tmp_path: Path) -> None:
    """make_checkpoint leaves no tokenizer: prompts are token ids, results have no text."""
    config = TINY_CONFIGS["one_kv_head"]
    reference = make_checkpoint(tmp_path / "model", config)
    prompts = [torch.randint(3, config.vocab_size, (n,), generator=torch.manual_seed(n)).tolist() for n in (1, 20, 70)]
    settings = [f"model.path={tmp_path / 'model'}", "backend=eager", "block_size=16", f"cache_dir={tmp_path / 'cache'}"]
    sampling = SamplingParams(max_new_tokens=12, ignore_eos=True)
    with LLM(settings) as llm:
        llm.warm_up(prompts, sampling, once=True)
        ready = llm.loaded.model.report.compiled
        results = llm.generate(prompts, sampling)
        assert llm.loaded.model.report.compiled == ready, "a step was compiled after warm-up"
        with pytest.raises(UserError, match="tokenizer"):
            llm.generate("a text")
    for prompt, result in zip(prompts, results, strict=True):
        assert len(result.token_ids) == 12
        assert check_greedy(reference, prompt, result.token_ids) == 0
        assert result.text == ""


def test_nothing_compiles_after_warming_up_for_a_server(tmp_path: Path) -> None:
    """Log-probabilities, sampled and greedy requests in one batch, and prompts that are found in the cache."""
    make_checkpoint(tmp_path / "model", TINY_CONFIGS["one_kv_head"])
    settings = [f"model.path={tmp_path / 'model'}", "backend=eager", "block_size=16", "max_seq_len=48"]
    settings += ["max_batch_size=1", "max_prefill_batch_size=1", "max_prefill_tokens=64"]
    kinds = [SamplingParams(logprobs=3, max_new_tokens=4), SamplingParams(temperature=1.0, seed=1, max_new_tokens=4)]
    prompts = [[5] * 20, [6] * 33, [7]]
    with LLM([*settings, f"cache_dir={tmp_path / 'cache'}"]) as llm:
        llm.warm_up(sampling=kinds)
        report = llm.loaded.model.report
        ready = report.compiled
        for _ in range(2):
            for kind in kinds:
                llm.generate(prompts, kind)
        assert llm.engine.statistics.cached_prompt_tokens > 0
        assert report.compiled == ready


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["no_such_setting=1"], "no_such_setting"),
        (["dtype=int4"], "int4"),
        (["model.path=/no/such/dir"], "/no/such/dir"),
        (["model=gemma_2b"], "model.path"),
        (["dtype"], "dtype"),
        ("dtype=float32", "list"),
    ],
)
def test_wrong_settings_are_named(settings: list[str], message: str, tmp_path: Path) -> None:
    overrides = settings if isinstance(settings, str) else [*settings, f"cache_dir={tmp_path}"]
    with pytest.raises(UserError, match=message):
        LLM(overrides)
