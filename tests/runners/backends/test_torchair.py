"""The torchair backend: lowered graphs against the graphs they came from, tokens against transformers, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import demo_cases
import pytest
import torch
import torchair_cases
from listing_cases import LISTED, OF_RANKS
from support.standin_cases import A2, DUO, NEEDS_TORCH_NPU, ROOT, run_cases
from support.token_rule import check_greedy
from torchair_cases import CASES

from graph_model.errors import UserError
from passes.pipeline import build_kernel_options, build_passes
from runners.backends.ascend import standin
from runners.backends.transformers_import import import_transformers
from runners.command_line.entry import compose
from runners.demo import CHECKPOINT_DIR
from runners.demo.world import demo_prompts
from runners.settings.model_settings import resolve_settings

FUSED = "passes.ascend_matmul_all_reduce.enabled=true"
ON_DUO = ("backend=torchair", f"soc={DUO}", "dtype=float16")
GOLDEN = Path(__file__).parent / "golden"
SCRIPT = Path(torchair_cases.__file__)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every fast case ended with."""
    directory = tmp_path_factory.mktemp("torchair")
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda soc: run_cases(SCRIPT, soc, directory, timeout=900), (A2, DUO)))
    return {**results[0], **results[1], "directory": str(directory)}


@pytest.mark.parametrize("name", CASES.params(slow=False))
def test_on_the_standin(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("soc", [pytest.param(soc, marks=NEEDS_TORCH_NPU) for soc in (A2, DUO)])
def test_listings_are_those_that_were_reviewed(
    soc: str, outcomes: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """`pytest tests/runners/backends --update-golden` rewrites them."""
    written = {path.name: path.read_text() for path in Path(outcomes["directory"], "listings").glob(f"{soc}-*.txt")}
    assert set(written) == {f"{soc}-{name}.txt" for name in (*LISTED[soc], *OF_RANKS[soc])}
    if request.config.getoption("--update-golden"):
        for path in GOLDEN.glob(f"{soc}-*.txt"):
            path.unlink()
        for name, text in written.items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
    assert written == {path.name: path.read_text() for path in GOLDEN.glob(f"{soc}-*.txt")}


def answers_of_command(directory: Path, backend: str, *settings: str) -> list[dict[str, Any]]:
    """What `python runners/infer.py SETTINGS` answers to the demo's prompts, which it must also print, saying that
    `backend` did."""
    output = directory / "out.jsonl"
    places = [f"cache_dir={directory / 'cache'}", f"output_file={output}", "overwrite=true"]
    command = [sys.executable, str(ROOT / "runners" / "infer.py"), *settings, *places]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    answers = sorted(map(json.loads, output.read_text().splitlines()), key=lambda answer: answer["index"])
    assert [answer["prompt"] for answer in answers] == demo_prompts()
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("backend:"))
    assert backend in line
    for answer in answers:
        assert backend in answer["backend"]
        assert f"\n{answer['prompt']}{answer['text']}\n" in process.stdout
    return answers


@pytest.fixture(scope="module")
def inductors_answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The answers of the default backend to the demo's prompts."""
    return answers_of_command(tmp_path_factory.mktemp("inductor"), "inductor on cpu", *demo_cases.ANSWERING)


@pytest.mark.parametrize("soc", [pytest.param(soc, marks=NEEDS_TORCH_NPU) for soc in (A2, DUO)])
def test_the_demos_answers_are_those_of_the_default_backend_and_of_transformers(
    soc: str, outcomes: dict[str, str], inductors_answers: list[dict[str, Any]]
) -> None:
    written = json.loads(Path(outcomes["directory"], f"answers-{soc}.json").read_text())
    assert standin.BANNER in " ".join(written["printed"].split())
    assert [answer["text"] for answer in written["answers"]] == [answer["text"] for answer in inductors_answers]
    assert len(written["answers"]) == len(demo_prompts())
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.float16).eval()
    total = sum(len(answer["token_ids"]) for answer in written["answers"])
    excused = sum(check_greedy(model, a["prompt_token_ids"], a["token_ids"]) for a in written["answers"])
    assert total > 200
    assert excused <= total // 100, (excused, total)


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("marked", [pytest.param(None, marks=NEEDS_TORCH_NPU)])
def test_the_command_for_the_duo_prints_what_the_default_backend_does(
    marked: None, inductors_answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert texts(answers_of_command(tmp_path, standin.BANNER, *ON_DUO)) == texts(inductors_answers)


@pytest.mark.slow
@pytest.mark.parametrize("marked", [pytest.param(None, marks=NEEDS_TORCH_NPU)])
def test_the_command_for_the_a2_prints_what_transformers_answers_but_for_ties_of_bfloat16(
    marked: None, tmp_path: Path
) -> None:
    answers = answers_of_command(tmp_path, standin.BANNER, "backend=torchair")
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.bfloat16).eval()
    excused = sum(check_greedy(model, a["prompt_token_ids"], a["token_ids"]) for a in answers)
    assert excused <= sum(len(a["token_ids"]) for a in answers) // 50, excused


@pytest.mark.slow
@pytest.mark.parametrize("marked", [pytest.param(None, marks=NEEDS_TORCH_NPU)])
def test_the_commands_print_the_text_of_the_default_backend_but_for_ties_of_bfloat16(
    marked: None, tmp_path: Path
) -> None:
    """As a user types them. In float16 all is equal, and so it is in bfloat16, the demo's dtype, on the CPUs tried; on
    another, whose sums have another order, two words as likely to within rounding may be chosen otherwise once."""
    runs = {}
    for name, *settings in (("ours",), ("a2", "backend=torchair"), ("half", "dtype=float16"), ("duo", *ON_DUO)):
        (tmp_path / name).mkdir()
        backend = standin.BANNER if "backend=torchair" in settings else "inductor on cpu"
        runs[name] = answers_of_command(tmp_path / name, backend, *settings)
    assert texts(runs["duo"]) == texts(runs["half"])
    model = import_transformers().GemmaForCausalLM.from_pretrained(CHECKPOINT_DIR).to(torch.bfloat16).eval()
    parted = []
    for ours, theirs in zip(runs["ours"], runs["a2"], strict=True):
        ties = sum(check_greedy(model, each["prompt_token_ids"], each["token_ids"]) for each in (ours, theirs))
        if ours["text"] != theirs["text"]:
            parted.append(ours["index"])
            assert ties, "neither choice is one that rounding excuses"
    assert len(parted) <= 1, parted
    assert len(demo_prompts()) - 1 not in parted, "the question has one answer"


@pytest.mark.parametrize("name", CASES.params(slow=True))
def test_slowly_on_the_standin(name: str, tmp_path: Path) -> None:
    outcome = run_cases(SCRIPT, CASES[name].soc, tmp_path, name, timeout=900)[name]
    assert not outcome, outcome


def settings(*overrides: str) -> Any:
    return compose("infer", ["weights=random", "model=gemma_2b", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backend=torchair", "dtype=float32"], "float16 or bfloat16"),
        (["backend=torchair", "soc=atlas_300i_duo", "dtype=bfloat16"], "in float16 only"),
        (["backend=torchair", "soc=ascend_910"], "the chips are atlas_800i_a2"),
        (["backend=torchair", "norm=quick"], "exact or fused"),
        (["soc=atlas_800i_a2"], "backend=torchair only"),
        (["norm=fused"], "backend=torchair only"),
        ([FUSED, "world_size=2"], "backend=torchair only"),
        ([FUSED, "world_size=2", "backend=torchair", "soc=atlas_300i_duo", "dtype=float16"], "no MatmulAllReduce"),
        ([FUSED, "model=gemma_7b", "world_size=16", "backend=torchair"], "joins 1, 2, 4, 8 devices"),
        ([FUSED, "world_size=2", "backend=torchair", "quant=w8a8"], "whose ranks sum int32 and float32"),
    ],
)
def test_illegal_settings_are_refused_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_settings(settings(*overrides))


def test_the_chip_is_the_800i_a2_unless_another_is_named() -> None:
    assert resolve_settings(settings("backend=torchair")).soc.name == "atlas_800i_a2"  # type: ignore[union-attr]
    assert resolve_settings(settings()).soc is None


def test_products_join_all_reduces_where_that_is_switched_on() -> None:
    given = ("backend=torchair", "world_size=2")
    assert not build_kernel_options(resolve_settings(settings(*given)).passes)
    switched_on = resolve_settings(settings(*given, FUSED)).passes
    assert [each.name for each in build_kernel_options(switched_on)] == ["ascend_matmul_all_reduce"]
    assert "ascend_matmul_all_reduce" not in [each.name for each in build_passes(switched_on)]
