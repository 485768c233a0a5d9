"""runners/evaluate.py and compare.py over the stand-in. See support.standin_cases."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from standin_commands import TINY, checkpoint, command
from support.standin_cases import A2, Cases
from support.tokenizers import make_tokenizer

from runners.compare import compare
from runners.evaluate import evaluate

CASES = Cases()
PROMPTS = [[5, 6, 7], list(range(3, 80))]
SERVING = ("max_prefill_tokens=64", "max_prefill_batch_size=1", "max_batch_size=1", "max_seq_len=128")


@CASES.add(A2)
def evaluate_and_compare_find_on_the_standin_what_they_find_on_the_cpu(folder: Path) -> None:
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

    sides = ['a=["backend=eager"]', 'b=["backend=torchair"]']
    given = [f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6", "ignore_eos=true"]
    status, out, err = command(compare, "compare", *settings, *sides, *given, f"results_dir={folder / 'compared'}")
    assert status == 0, err
    assert "compared:         12 next-token distributions behind 2 prompts" in out
    assert "rule:             holds" in out
    (summary,) = (folder / "compared").glob("comparison_*.json")
    assert 0 < json.loads(summary.read_text())["kl_max"] < 1e-3, "two ways to compute it, not one"
