"""lm-evaluation-harness's tasks on the engine."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.evaluation.report import TaskReport
from graph_gemma.runners.evaluation.task_data import data_of, offline_if_unreachable, unreachable
from graph_gemma.runners.llm import LLM

TASKS_DIR = Path(__file__).resolve().parent / "tasks"  # tasks that come with this package


def check_installed() -> None:
    """Raise UserError with the pip line if the harness is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "tasks: they need lm-evaluation-harness, which is not installed. Run: pip install 'graph-gemma[evaluate]' "
            "(or pip install lm-eval). dataset=FILE, perplexity=FILE and the demo's items need nothing further."
        )


def run_tasks(llm: LLM, names: Sequence[str], limit: int | None) -> list[TaskReport]:
    """Run tasks, groups or tags by their names in the harness, or by the path of a YAML file. Raises UserError.

    A report per task, in the harness's order, and after them one per group that has a figure of its own.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from graph_gemma.runners.evaluation.lm import GraphGemmaLM

    manager = TaskManager(include_path=str(TASKS_DIR))
    known = set(manager.all_tasks)
    for name in names:
        if name not in known and not Path(name).is_file():
            near = difflib.get_close_matches(name, known, 5) or [task for task in sorted(known) if name in task][:5]
            hint = f"Near names: {', '.join(near)}." if near else "`lm-eval ls tasks` lists them."
            raise UserError(f"tasks: lm-evaluation-harness has no task {name!r}, and no file has that path. {hint}")
    data = data_of(manager.task_index, names)
    try:
        with offline_if_unreachable(data):
            found: Any = simple_evaluate(
                GraphGemmaLM(llm), tasks=list(names), limit=limit, task_manager=manager, log_samples=True
            )
    except UserError:
        raise
    except Exception as error:
        raise unreachable(names, data, error) from error
    return _reports(found)


def _reports(found: dict[str, Any]) -> list[TaskReport]:
    from lm_eval.utils import hash_string

    samples = found.pop("samples")
    found["task_hashes"] = {
        name: hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        for name, rows in samples.items()
    }
    reports = [
        TaskReport(
            name,
            _metrics(found["results"][name]),
            [_row(sample) for sample in rows],
            found["n-samples"][name]["effective"],
            harness={},
        )
        for name, rows in samples.items()
    ]
    for name, values in found.get("groups", {}).items():
        reports.append(TaskReport(name, _metrics(values), [], values.get("sample_len", 0), harness={}))
    reports[0].harness = found
    return reports


def _metrics(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if "," in name}


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    """A harness sample as a line of a table; what is no number or text is JSON."""
    arguments = [list(argument) for argument in sample["arguments"]]
    row = {
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "prompt": arguments[0][0] if arguments else "",
        "target": sample["target"],
        "resps": sample["filtered_resps"],
        **{metric: sample[metric] for metric in sample["metrics"] if metric in sample},
    }
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value, default=str)
        for name, value in row.items()
    }
