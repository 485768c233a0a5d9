"""Run a workload whose lowered steps are checked node by node, then each op of its steps alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.engine import describe_device
from graph_gemma.runners.backends.torchair import TorchairBackend
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scoring import ScoreRequest
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.declared.infer import SMALLEST_CHUNK
from graph_gemma.runners.settings.model_settings import ModelSettings
from graph_gemma.runners.verification.acceptance import verify_ops
from graph_gemma.runners.verification.report import Report, StepResult
from graph_gemma.runners.verification.representative_steps import representative_steps
from graph_gemma.runners.verification.single_ops import SingleOp, cut_out_ops

# The second prompt takes two chunks, the third finds the second's first chunk in the cache.
_PROMPT_LENGTHS = (7, 2 * SMALLEST_CHUNK - 2, SMALLEST_CHUNK + 5)
_GREEDY = SamplingParams(max_new_tokens=4, ignore_eos=True)
_SAMPLED = SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=1, max_new_tokens=4, ignore_eos=True, logprobs=2)


def run_verification(settings: ModelSettings) -> Report:
    """Run the workload of `settings`, whose backend is torchair; then every op of its steps and of representative ones.

    Raises UserError.
    """
    with LLM(settings, check="record") as llm:
        failures = _run_workload(llm, settings.config.vocab_size)
        backend = llm.loaded.model.recipe.backend
        assert isinstance(backend, TorchairBackend)
        checked = [step for step in backend.checked_steps if step.findings.runs]
        cases: dict[str, SingleOp] = {}
        for step in checked:
            arguments = [tensor.cpu() for tensor in llm.loaded.model.arguments(step.bucket)]
            cases = {**cut_out_ops(step.lowered, arguments, str(step.bucket)), **cases}
        soc, description = backend.options.soc, llm.loaded.backend
        steps = [StepResult(str(step.bucket), step.findings) for step in checked]
    failures += [f"{step.bucket}: {problem}" for step in steps for problem in step.findings.problems]
    for representative in representative_steps(soc):
        try:
            cases = {**representative.cut_out_ops(soc), **cases}
        except (RuntimeError, GeGraphError) as error:
            failures.append(f"{representative}: the step could not run: {error}")
    ops = verify_ops(cases.values())
    failures += [f"{result.case} of {result.step}: {result.problem}" for result in ops if result.problem]
    if not steps:
        failures.append("no step could be run")
    on_standin = standin.is_standin()
    versions = {name: importlib.metadata.version(name) for name in ("graph-gemma", "torch", "torch_npu")}
    return Report(on_standin, description, {} if on_standin else describe_device(), versions, failures, ops, steps)


def _run_workload(llm: LLM, vocab_size: int) -> list[str]:
    """Run the workload; returns a failure for each part that cannot run."""
    failures = []
    for name, run in _workload(llm, vocab_size).items():
        try:
            run()
        except UserError:
            raise
        except (RuntimeError, GeGraphError) as error:
            failures.append(f"{name}: a step could not run: {error}")
    return failures


def _workload(llm: LLM, vocab_size: int) -> dict[str, Callable[[], object]]:
    """Prompts are answered greedily and by sampling, and a text is scored."""
    prompts = [[3 + (7 * i) % (vocab_size - 3) for i in range(length)] for length in _PROMPT_LENGTHS]
    text, positions = prompts[0], list(range(len(prompts[0]) - 1))
    return {
        "greedy answers": lambda: llm.generate(prompts, _GREEDY),
        "sampled answers": lambda: llm.generate(prompts, _SAMPLED),
        "scores": lambda: llm.score([ScoreRequest(text, positions, text[1:])]),
        "distributions": lambda: llm.score([ScoreRequest(text, positions)]),
    }
