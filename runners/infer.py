"""Continue prompts with a Gemma model: python runners/infer.py [SETTING=VALUE ...]."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.infer import InferSettings
    from graph_gemma.runners.settings.model_settings import ModelSettings


def infer(settings: InferSettings) -> None:
    """Load the model, answer the prompts, report speed and memory. Ends with status 1 if a request failed."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from graph_gemma.runners.llm.ranks import on_ranks
    from graph_gemma.runners.settings.model_settings import resolve_settings

    model_settings = resolve_settings(settings)
    on_ranks(model_settings, lambda: _answer(settings, model_settings))


def _answer(settings: InferSettings, model_settings: ModelSettings) -> None:
    from graph_gemma.runners.backends.base import Check
    from graph_gemma.runners.io.files import output_file
    from graph_gemma.runners.io.inputs import read_inputs
    from graph_gemma.runners.io.output import OutputFile
    from graph_gemma.runners.llm import LLM
    from graph_gemma.runners.llm.answer import answer, name_failures
    from graph_gemma.runners.llm.check import check_answers, check_model_passes, report_checked_steps
    from graph_gemma.runners.llm.report import print_report

    inputs = read_inputs(settings, model_settings)
    checking: Check = "stop" if settings.check else "no"
    with (
        OutputFile(output_file(settings, "output_file")) as output,
        LLM(model_settings, inputs.tokenizer, checking) as llm,
    ):
        if settings.check:
            check_model_passes(llm.loaded)
        llm.warm_up([prompt.token_ids for prompt in inputs.prompts], inputs.sampling, once=True)
        results = answer(llm, inputs, output)
        print_report(llm, results)
        failed = name_failures(results)
        output.check()
        if failed:
            sys.exit(1)
        if settings.check:
            report_checked_steps(llm.loaded)
            check_answers(llm.loaded, inputs, results)


if __name__ == "__main__":
    main(infer, "infer")
