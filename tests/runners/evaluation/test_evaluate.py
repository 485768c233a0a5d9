"""runners/evaluate.py: choices and perplexity are those of transformers, reports are complete, bad input is named."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import BOS, UNK, ids_of, make_tokenizer

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners import evaluation
from graph_gemma.runners.evaluate import evaluate
from graph_gemma.runners.evaluation.task_data import data_of, unreachable

CONFIG = TINY_CONFIGS["untied_head"]
ITEMS = [
    {"title": f"T{n}", "passage": "abc " * n, "question": f"is it {n}", "answer": n % 2 == 0} for n in (1, 2, 3, 5)
]
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra evaluate is missing")
Run = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("checkpoint")
    model = make_checkpoint(directory, CONFIG)
    make_tokenizer(directory, size=CONFIG.vocab_size)
    return directory, model


@pytest.fixture
def run(
    reference: tuple[Path, torch.nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def call(*arguments: str) -> CommandResult:
        settings = [f"model.path={reference[0]}", "backend=eager", f"cache_dir={tmp_path / 'cache'}"]
        settings += [f"results_dir={tmp_path / 'results'}", "max_seq_len=128"]
        names = {argument.split("=", 1)[0] for argument in arguments}
        kept = [setting for setting in settings if setting.split("=", 1)[0] not in names]
        return run_command(evaluate, "evaluate", [*kept, *arguments], capsys, monkeypatch)

    return call


def written(tmp_path: Path, pattern: str) -> Path:
    """The one file of the results whose name, without the time in it, is as given."""
    (path,) = (tmp_path / "results").glob(pattern)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_items(path: Path, lines: list[object]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@torch.no_grad()
def logprob(model: torch.nn.Module, ids: list[int], count: int) -> float:
    """Of the last `count` of the ids."""
    rows = model(torch.tensor([ids[:-1]])).logits[0, -count:].log_softmax(-1)
    return float(rows.gather(-1, torch.tensor(ids[-count:])[:, None]).sum())


def encode(text: str) -> list[int]:
    return [BOS, *(UNK if character == "|" else ids_of(character)[0] for character in text)]


def test_items_and_a_text(reference: tuple[Path, torch.nn.Module], tmp_path: Path, run: Run) -> None:
    items = write_items(tmp_path / "items.jsonl", [ITEMS[0], "", *ITEMS[1:]])
    text = "one two three, " * 20
    (tmp_path / "text.txt").write_text(text)
    result = run(f"dataset={items}", f"perplexity={tmp_path / 'text.txt'}")
    assert result.status == 0, result
    model = reference[1]
    rows = table(written(tmp_path, "samples_items.jsonl_*.csv"))
    hits = []
    for item, row in zip(ITEMS, rows, strict=True):
        # The tokenizer of characters has no line break: it is <unk>, one for both.
        prompt = f"{item['title']} -- {item['passage']}|Question: {item['question']}?|Answer:"
        yes, no = (logprob(model, encode(prompt + text), len(text)) for text in (" yes", " no"))
        assert float(row["logprob_yes"]) == pytest.approx(yes, abs=1e-3)
        assert float(row["logprob_no"]) == pytest.approx(no, abs=1e-3)
        assert row["choice"] == ("yes" if yes > no else "no")
        hits.append(float((yes > no) == item["answer"]))
        assert float(row["acc"]) == hits[-1]
    found = json.loads(written(tmp_path, "results_*.json").read_text())
    mean = sum(hits) / 4
    assert found["results"]["items.jsonl"]["acc,none"] == mean
    deviation = torch.tensor(hits).std().item()
    assert found["results"]["items.jsonl"]["acc_stderr,none"] == pytest.approx(deviation / 2)
    assert found["n-samples"]["items.jsonl"] == {"original": 4, "effective": 4}
    # A token is a character: 300 of them after <bos>, in windows of 126 that begin with <bos> each, the last of which
    # reaches back.
    ids = encode(text)
    total = 0.0
    for first in range(1, len(ids), 126):
        end = min(first + 126, len(ids))
        window = ids[max(0, end - 127) : end]
        total += logprob(model, window if window[0] == ids[0] else [ids[0], *window], end - first)
    perplexity = found["results"]["text.txt"]["token_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-total / 300), rel=1e-3)
    # 60 words; a byte is a character.
    metrics = found["results"]["text.txt"]
    assert metrics["word_perplexity,none"] == pytest.approx(math.exp(-total / 60), rel=1e-2)
    assert metrics["byte_perplexity,none"] == pytest.approx(perplexity, rel=1e-6)
    assert metrics["bits_per_byte,none"] == pytest.approx(math.log2(perplexity), rel=1e-6)
    # The summary says the same, and how fast it was.
    summary = {(row["task"], row["metric"]): row for row in table(written(tmp_path, "summary_*.csv"))}
    assert list(summary) == [
        ("items.jsonl", "acc"),
        *(("text.txt", f"{name}_perplexity") for name in ("token", "word", "byte")),
        ("text.txt", "bits_per_byte"),
    ]
    accuracy = summary["items.jsonl", "acc"]
    assert (float(accuracy["value"]), accuracy["samples"], accuracy["filter"]) == (mean, "4", "none")
    assert float(accuracy["stderr"]) == pytest.approx(deviation / 2)
    assert float(summary["text.txt", "token_perplexity"]["value"]) == perplexity
    assert all(float(row["samples_per_s"]) > 0 for row in summary.values())
    assert f"items.jsonl:             acc {mean:.4f} ± {deviation / 2:.4f}" in result.stdout
    assert f"4 samples, {float(accuracy['samples_per_s']):.1f} samples/s" in result.stdout


def test_earlier_files_stay_and_the_configuration_is_told(tmp_path: Path, run: Run) -> None:
    items = write_items(tmp_path / "items.jsonl", ITEMS)
    assert run(f"dataset={items}").status == 0
    first = {path: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert run(f"dataset={items}", "quant=w8a16", "quant.kv8=true", "limit=2").status == 0
    paths = set((tmp_path / "results").iterdir())
    assert len(paths) == 2 * len(first) == 6
    assert {path: path.read_text() for path in first} == first
    (path,) = (path for path in paths - set(first) if path.name.startswith("results_"))
    config = json.loads(path.read_text())["config"]
    assert (config["model"], config["limit"]) == ("graph_gemma", 2)
    told = {name: config["model_args"][name] for name in ("weights", "dtype", "norm", "world_size", "soc", "backend")}
    assert told == {
        "weights": "checkpoint",
        "dtype": "float32",
        "norm": "exact",
        "world_size": 1,
        "soc": None,
        "backend": "eager",
    }
    assert (config["model_args"]["quant.scheme"], config["model_args"]["quant.kv8"]) == ("w8a16", True)
    assert "model.layers.0.self_attn.q_proj" in config["model_args"]["quant.linears"]


@pytest.mark.parametrize(
    ("settings", "smallest", "largest"),
    [
        (["quant=w8a16"], 1e-4, 0.3),
        (["quant=w8a8_dynamic"], 1e-4, 0.5),
        pytest.param(["backend=inductor"], 0.0, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_every_backend_nearly_gives_transformers_logprobs(
    settings: list[str],
    smallest: float,
    largest: float,
    reference: tuple[Path, torch.nn.Module],
    tmp_path: Path,
    run: Run,
) -> None:
    """smallest, largest: the largest difference per token, in nats; a model that is quantized must differ."""
    assert run(f"dataset={write_items(tmp_path / 'items.jsonl', ITEMS)}", *settings).status == 0
    differences = []
    for item, row in zip(ITEMS, table(written(tmp_path, "samples_*.csv")), strict=True):
        prompt = f"{item['title']} -- {item['passage']}|Question: {item['question']}?|Answer:"
        for name, answer in (("logprob_yes", " yes"), ("logprob_no", " no")):
            expected = logprob(reference[1], encode(prompt + answer), len(answer))
            differences.append(abs(float(row[name]) - expected) / len(answer))
    assert smallest <= max(differences) <= largest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ({"title": "t", "passage": "p", "question": "q"}, "line 2: answer is missing"),
        ({"title": "t", "passage": "p", "question": "q", "answer": "yes"}, "line 2: answer is 'yes'"),
        ({"title": "t", "passage": 5, "question": "q", "answer": True}, "line 2: passage is 5"),
        ({"title": "t", "passage": "p" * 200, "question": "q", "answer": True}, "line 2: .* max_seq_len is 128"),
    ],
)
def test_the_line_at_fault_is_named(line: object, message: str, tmp_path: Path, run: Run) -> None:
    result = run(f"dataset={write_items(tmp_path / 'items.jsonl', [ITEMS[0], line])}")
    assert result.status == 2
    assert re.match(rf"error: .*{message}", result.stderr.splitlines()[-1])
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dataset=/no/such/file", "dataset: /no/such/file cannot be read"),
        ("perplexity=/no/such/file", "perplexity: /no/such/file cannot be read"),
        ("perplexity=/dev/null", "no text to score"),
        ("dataset=/dev/null", "holds no items"),
        ("limit=0", "limit is 0"),
        ("tasks=[1]", "tasks is"),
        ("results_dir=/dev/null/x", "results_dir: /dev/null/x cannot be created"),
        (f"max_batch_size={2**63 - 1}", "error: max_batch_size is 9223372036854775807"),
        (f"max_prefill_batch_size={2**63 - 1}", "error: max_prefill_batch_size is 9223372036854775807"),
        ("num_blocks=1000000000000", "error: num_blocks is 1000000000000"),
    ],
)
def test_bad_settings_are_named(argument: str, message: str, run: Run) -> None:
    result = run(argument)
    assert result.status == 2
    assert message in result.stderr


def test_a_missing_harness_is_named_with_the_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name))
    result = run("tasks=[boolq]")
    assert result.status == 2
    assert "pip install 'graph-gemma[evaluate]'" in result.stderr


def test_a_download_that_fails_names_the_data_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = RuntimeError("task boolq")
    error.__cause__ = ConnectionError("no route")
    refusal = unreachable(["boolq"], [("aps/super_glue", "boolq")], error)
    assert isinstance(refusal, UserError)
    assert "boolq needs the data set aps/super_glue (its configuration boolq)" in str(refusal)
    assert "`hf download --repo-type dataset aps/super_glue --local-dir aps/super_glue`" in str(refusal)
    assert f"copy the folder to {tmp_path}/aps/super_glue," in str(refusal)
    other = ValueError("a bug")
    assert unreachable(["boolq"], [], other) is other


@needs_harness
def test_the_data_of_tasks_groups_and_tags_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    index = TaskManager(include_path=str(Path(evaluation.__file__).parent / "tasks")).task_index
    assert data_of(index, ["demo_comprehension", "demo_stories", "no_such_task"]) == []
    assert data_of(index, ["boolq"]) == [("aps/super_glue", "boolq")]
    assert {path for path, _ in data_of(index, ["mmlu"])} == {"cais/mmlu"}
    assert ("aps/super_glue", "boolq") in data_of(index, ["super-glue-lm-eval-v1"])
    (tmp_path / "aps/super_glue").mkdir(parents=True)
    assert data_of(index, ["boolq"]) == []


@needs_harness
def test_without_network_a_download_fails_at_once(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from graph_gemma.runners.evaluation import task_data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(task_data, "_is_reachable", lambda: False)
    start = time.monotonic()
    result = run("tasks=[boolq]")
    assert time.monotonic() - start < 30, "it tried again and again"
    assert result.status == 2
    assert f"copy the folder to {tmp_path}/aps/super_glue," in result.stderr
    assert not constants.HF_HUB_OFFLINE


@needs_harness
def test_an_unknown_task_gets_the_near_names(run: Run) -> None:
    result = run("tasks=[demo_comprehensio]")
    assert result.status == 2
    assert "Near names: demo_comprehension" in result.stderr


GROUP = """
group: two_halves
task: [first_half, second_half]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""
HALF = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{title}} -- {{passage}}\nQuestion: {{question}}?\nAnswer:"
doc_to_target: "{{answer | int}}"
doc_to_choice: ["no", "yes"]
metadata: {version: 1.0}
"""


@needs_harness
def test_a_group_has_its_own_figure(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_gemma.runners.evaluation import harness

    monkeypatch.setattr(harness, "TASKS_DIR", tmp_path / "tasks")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/group.yaml").write_text(GROUP)
    for name, items in (("first_half", ITEMS[:1]), ("second_half", ITEMS[1:])):
        file = write_items(tmp_path / f"{name}.jsonl", items)
        (tmp_path / f"tasks/{name}.yaml").write_text(HALF.replace("NAME", name).replace("FILE", str(file)))
    result = run("tasks=[two_halves]")
    assert result.status == 0, result.stderr
    rows = [row for row in table(written(tmp_path, "summary_*.csv")) if row["metric"] == "acc"]
    assert [(row["task"], row["samples"]) for row in rows] == [
        ("first_half", "1"),
        ("second_half", "3"),
        ("two_halves", "4"),
    ]
    first, second, both = (float(row["value"]) for row in rows)
    assert both == pytest.approx((first + 3 * second) / 4)
    assert f"two_halves:              acc {both:.4f}" in result.stdout
    found = json.loads(written(tmp_path, "results_*.json").read_text())
    assert found["groups"]["two_halves"]["acc,none"] == both
    assert found["group_subtasks"]["two_halves"] == ["first_half", "second_half"]
    assert len(list((tmp_path / "results").glob("samples_*"))) == 2
