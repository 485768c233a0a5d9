"""runners/evaluate.py over the stand-in. See support.standin_cases."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from standin_commands import SERVING, TINY, checkpoint, command
from support.standin_cases import A2, Cases
from support.tokenizers import make_tokenizer

from runners.evaluate import evaluate

CASES = Cases()


@CASES.add(A2)
def evaluate_finds_on_the_standin_what_it_finds_on_the_cpu(folder: Path) -> None:
    settings = [*checkpoint(folder), *SERVING]
    make_tokenizer(folder / "checkpoint", size=TINY.vocab_size)
    item = {"title": "T", "passage": "abc", "question": "is it", "answer": True}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    found = []
    for backend in ("eager", "torchair"):
        results = [f"backend={backend}", f"dataset={folder / 'items.jsonl'}", f"results_dir={folder / backend}"]
        status, _, err = command(evaluate, "evaluate", *settings, *results)
        assert status == 0, err
        (samples,) = (folder / backend).glob("samples_*.csv")
        with samples.open(newline="") as file:
            found.append(next(csv.DictReader(file)))
        (written,) = (folder / backend).glob("results_*.json")
        soc = json.loads(written.read_text())["config"]["model_args"]["soc"]
        assert soc == (None if backend == "eager" else A2)
    for name in ("logprob_yes", "logprob_no"):
        assert abs(float(found[0][name]) - float(found[1][name])) < 0.05, found
