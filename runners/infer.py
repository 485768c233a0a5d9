"""Continue prompts with a Gemma model: python runners/infer.py [SETTING=VALUE ...]."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from runners.command_line.entry import main

if TYPE_CHECKING:
    from runners.settings import ModelSettings


def infer(settings: Any) -> None:
    """Load the model, answer the prompts, report speed and memory. Ends with status 1 if a request failed."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from runners.llm.ranks import on_ranks
    from runners.settings import resolve_settings
    from runners.settings.values import boolean

    model_settings = resolve_settings(settings)
    check = boolean("check", settings.check)
    on_ranks(model_settings, lambda: _answer(settings, model_settings, check))


def _answer(settings: Any, model_settings: ModelSettings, check: bool) -> None:
    from runners.backends.base import Check
    from runners.io.files import output_file
    from runners.io.inputs import read_inputs
    from runners.io.output import OutputFile
    from runners.llm import LLM
    from runners.llm.answer import answer, name_failures
    from runners.llm.check import check_answers, check_model_passes, report_checked_steps
    from runners.llm.report import print_report

    inputs = read_inputs(settings, model_settings)
    checking: Check = "stop" if check else "no"
    with (
        OutputFile(output_file(settings, "output_file")) as output,
        LLM(model_settings, inputs.tokenizer, checking) as llm,
    ):
        if check:
            check_model_passes(llm.loaded)
        llm.warm_up([prompt.token_ids for prompt in inputs.prompts], inputs.sampling, once=True)
        results = answer(llm, inputs, output)
        print_report(llm, results)
        failed = name_failures(results)
        output.check()
        if failed:
            sys.exit(1)
        if check:
            report_checked_steps(llm.loaded)
            check_answers(llm.loaded, inputs, results)


if __name__ == "__main__":
    main(infer, "infer")
