"""Continue prompts with a Gemma model: python runners/infer.py [SETTING=VALUE ...]."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from runners.entry import main


def infer(settings: Any) -> None:
    """Load the model, answer the prompts, report speed and memory."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from runners.answer import answer
    from runners.check import check_answers, check_model_passes
    from runners.engine.llm import LLM
    from runners.inputs import read_inputs
    from runners.load import load_model
    from runners.output import OutputFile
    from runners.report import print_report
    from runners.settings import resolve_settings
    from runners.warm_up import reachable_buckets

    model_settings = resolve_settings(settings)
    inputs = read_inputs(settings, model_settings)
    with ExitStack() as resources:
        output = resources.enter_context(OutputFile(settings.output_file))
        loaded = load_model(model_settings, resources)
        if settings.check:
            check_model_passes(loaded)
        model = loaded.model
        llm = LLM(model, inputs.tokenizer, model_settings.config.eos_token_ids, model_settings.config.vocab_size)
        first = inputs.sampling[0]
        ids = [prompt.token_ids for prompt in inputs.prompts]
        model.warm_up(reachable_buckets(model, ids, first.max_new_tokens, sample=not first.greedy))
        results = answer(llm, inputs, output)
        print_report(loaded, llm, results)
        if settings.check:
            check_answers(loaded, inputs, results)


if __name__ == "__main__":
    main(infer, "infer")
