"""lm-evaluation-harness's tasks on the engine."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.evaluation.report import TaskReport
from runners.llm import LLM

TASKS_DIR = Path(__file__).resolve().parent / "tasks"  # tasks that come with this package


def check_installed() -> None:
    """Raise UserError with the pip line if the harness is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "tasks: they need lm-evaluation-harness, which is not installed. Run: pip install 'graph-gemma[evaluate]' "
            "(or pip install lm-eval). dataset=FILE, perplexity=FILE and the demo's items need nothing further."
        )


def run_tasks(llm: LLM, names: Sequence[str], limit: int | None) -> list[TaskReport]:
    """Run tasks by their names in the harness, or by the path of a task's YAML file. Raises UserError."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from runners.evaluation.lm import GraphGemmaLM

    manager = TaskManager(include_path=str(TASKS_DIR))
    known = set(manager.all_tasks)
    for name in names:
        if name not in known and not Path(name).is_file():
            near = difflib.get_close_matches(name, known, 5) or [task for task in sorted(known) if name in task][:5]
            hint = f"Near names: {', '.join(near)}." if near else "`lm-eval ls tasks` lists them."
            raise UserError(f"tasks: lm-evaluation-harness has no task {name!r}, and no file has that path. {hint}")
    try:
        found: Any = simple_evaluate(
            GraphGemmaLM(llm), tasks=list(names), limit=limit, task_manager=manager, log_samples=True
        )
    except UserError:
        raise
    except Exception as error:
        raise unreachable(names, error) from error
    samples = found.pop("samples")
    reports = [
        TaskReport(name, dict(_metrics(found["results"][name])), [_row(sample) for sample in rows])
        for name, rows in samples.items()
    ]
    reports[0].harness = found
    for report in reports[1:]:
        report.harness = {}
    return reports


def unreachable(names: Sequence[str], error: Exception) -> Exception:
    """A UserError if a task's data could not be loaded, else the error itself."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    words = " ".join(f"{type(one).__name__} {one}" for one in chain)
    signs = ("ConnectionError", "LocalEntryNotFound", "DatasetNotFound", "Offline", "ConnectError", "Max retries")
    if not any(sign in words for sign in signs):
        return error
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"tasks: the data of {', '.join(names)} must be downloaded, and that failed ({type(error).__name__}: "
        f"{reason}). On a machine with network run `hf download --repo-type dataset NAME`, NAME being dataset_path in "
        f"the task's YAML file, copy the folder datasets--* that it leaves in its cache to {HF_HUB_CACHE}, and set "
        "HF_HUB_OFFLINE=1; or give local data with dataset=FILE.jsonl."
    )


def _metrics(results: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in results.items() if "," in name]


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    """A harness sample as a line of a table; what is no number or text is JSON."""
    arguments = [list(argument) for argument in sample["arguments"]]
    row = {
        "doc_id": sample["doc_id"],
        "prompt": arguments[0][0] if arguments else "",
        "target": sample["target"],
        "resps": sample["filtered_resps"],
        **{metric: sample[metric] for metric in sample["metrics"] if metric in sample},
    }
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value, default=str)
        for name, value in row.items()
    }
