"""What runners/verify.py runs, and the report that it writes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from graph_model.ascend import standin
from graph_model.ascend.acceptance import OpResult, verify_ops
from graph_model.ascend.checked_step import CheckedStep
from graph_model.ascend.engine import describe_device
from graph_model.ascend.ge_graph import GeGraphError
from graph_model.ascend.single_ops import cut_out_ops
from graph_model.backends.torchair import TorchairBackend
from graph_model.errors import UserError
from runners.engine.sampling_params import SamplingParams
from runners.llm import LLM
from runners.settings import SMALLEST_CHUNK, ModelSettings

# A prompt of one chunk, and one of two where max_prefill_tokens is the smallest.
_PROMPT_LENGTHS = (7, 2 * SMALLEST_CHUNK - 2)
_SAMPLINGS = (
    SamplingParams(max_new_tokens=4, ignore_eos=True),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=1, max_new_tokens=4, ignore_eos=True, logprobs=2),
)
_ON_DEVICE = (
    "Each op ran alone, and each step whole, on the device; both are compared with the interpreter, and the "
    "interpreter with independent formulas and CPU kernels."
)
_ON_STANDIN = (
    "NO NPU WAS USED. Each op of the graph ran alone in the GE interpreter and is compared with an independent formula "
    "in float64; each step ran whole in the interpreter and is compared, node by node, with the FX graph that was "
    "lowered, run by CPU kernels. Nothing here says what a device computes: run this command where CANN is."
)


def run_verification(settings: ModelSettings) -> dict[str, Any]:
    """Run the workload and every op of its steps; the report, as JSON."""
    with LLM(settings, check="record") as llm:
        failures = _run_workload(llm, settings.config.vocab_size)
        backend = llm.loaded.model.recipe.backend
        assert isinstance(backend, TorchairBackend)
        cases = {}
        for step in backend.checked_steps:
            arguments = [tensor.cpu() for tensor in llm.loaded.model.arguments(step.bucket)]
            cases.update(cut_out_ops(step.lowered, arguments))
        ops = verify_ops(cases.values())
        steps = [_step(step) for step in backend.checked_steps if step.findings.runs]
        description = llm.loaded.backend
    failures += [f"{step['bucket']}: {problem}" for step in steps for problem in step["problems"]]
    failures += [f"{result.case}: {result.problem}" for result in ops if result.problem]
    on_standin = standin.is_standin()
    return {
        "passed": not failures,
        "where": "stand-in" if on_standin else "device",
        "statement": _ON_STANDIN if on_standin else _ON_DEVICE,
        "backend": description,
        "device": {} if on_standin else describe_device(),
        "versions": {name: importlib.metadata.version(name) for name in ("graph-gemma", "torch", "torch_npu")},
        "failures": failures,
        "ops": [dataclasses.asdict(result) for result in ops],
        "steps": steps,
    }


def _run_workload(llm: LLM, vocab_size: int) -> list[str]:
    """Answer the prompts greedily and by sampling. What the engine refuses to run is a failure, not the end."""
    prompts = [[3 + (7 * i) % (vocab_size - 3) for i in range(length)] for length in _PROMPT_LENGTHS]
    failures = []
    for sampling in _SAMPLINGS:
        try:
            llm.generate(prompts, sampling)
        except UserError:
            raise
        except (RuntimeError, GeGraphError) as error:
            failures.append(f"a step with {sampling} could not run: {error}")
    return failures


def _step(step: CheckedStep) -> dict[str, Any]:
    return {"bucket": str(step.bucket), **dataclasses.asdict(step.findings)}


def write_report(report: dict[str, Any], directory: Path) -> str:
    """Write report.json and report.txt, each whole or not at all; returns the text. Raises UserError."""
    text = report_text(report)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.txt", text)):
            temporary = directory / f".{name}.{os.getpid()}"
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, directory / name)
    except OSError as error:
        raise UserError(f"report_dir: {directory} cannot be written ({error}). Name another directory.") from None
    return text


def report_text(report: dict[str, Any]) -> str:
    """The report for a reader: a line per op type and per step, then what failed."""
    lines = [report["backend"], report["statement"], ""]
    lines += [f"{name}: {value}" for name, value in (*report["device"].items(), *report["versions"].items())]
    engine = "interpreter" if report["where"] == "stand-in" else "device"
    lines += ["", f"{'op type':28}{'cases':>6}{'formula':>10}{engine:>13}{'allowed':>10}"]
    by_type: dict[str, list[OpResult]] = defaultdict(list)
    for raw in report["ops"]:
        by_type[raw["type"]].append(OpResult(**raw))
    for op_type, results in by_type.items():
        verdict = "" if not any(result.problem for result in results) else "  DIFFERS"
        errors = [_largest(result.formula for result in results), _largest(result.engine for result in results)]
        allowed = max(result.allowed for result in results)
        lines.append(f"{op_type:28}{len(results):6}{errors[0]:>10}{errors[1]:>13}{allowed:10.0e}{verdict}")
    lines += ["", f"{'step':28}{'runs':>6}{'nodes':>7}{'error':>10}{'tokens':>8}{'excused':>8}"]
    for step in report["steps"]:
        verdict = "  DIFFERS" if step["problems"] else ""
        lines.append(
            f"{step['bucket']:28}{step['runs']:6}{step['nodes']:7}{step['error']:10.1e}{step['tokens']:8}"
            f"{step['excused']:8}{verdict}"
        )
    lines += ["", *(f"FAILED {failure}" for failure in report["failures"])]
    lines.append(f"{'passed' if report['passed'] else 'FAILED'}, on the {report['where']}")
    return "\n".join(lines) + "\n"


def _largest(errors: Any) -> str:
    present = [error for error in errors if error is not None]
    return f"{max(present):.1e}" if present else "-"
