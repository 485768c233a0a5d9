"""Compare two configurations on the same prompts: python runners/compare.py a=[...] b=[...] [SETTING=VALUE ...]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.comparison.side import Side
    from graph_gemma.runners.settings.declared.compare import CompareSettings


def compare(settings: CompareSettings) -> None:
    """Run both sides, print how far apart they are; exit status 1 if the same precision fails the rule."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    import numpy as np

    from graph_gemma.runners.comparison import divergence, report, side
    from graph_gemma.runners.engine.sampling_params import SamplingParams
    from graph_gemma.runners.io.inputs import read_inputs
    from graph_gemma.runners.settings.model_settings import resolve_settings, writable_directory

    common = [text for text in settings.given if text.partition("=")[0] not in ("a", "b", "results_dir")]
    sides = [_side(name, getattr(settings, name), common) for name in ("a", "b")]
    if sides[0].peer == sides[1].peer and sides[0].overrides == sides[1].overrides:
        raise UserError("a and b are the same configuration. Give a=[SETTING=VALUE,...] or b=[...], or b=transformers.")
    inputs = read_inputs(settings, resolve_settings(settings))
    own = next((name for prompt in inputs.prompts for name in prompt.settings), None)
    if own is not None:
        raise UserError(f"prompts_file: a line sets {own}, but both sides answer all prompts alike. Leave it out.")
    sampling = SamplingParams(max_new_tokens=settings.max_new_tokens, ignore_eos=settings.ignore_eos)
    directory = writable_directory("results_dir", settings.results_dir)
    prompts = [prompt.token_ids for prompt in inputs.prompts]
    texts = side.Texts(prompts, [len(prompt) for prompt in prompts])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = []
        for one in sides:
            texts, outcome = side.run_side(one, texts, sampling, Path(folder) / f"{one.name}.npy")
            outcomes.append(outcome)
        rows_a, rows_b = (np.load(outcome.logprobs, mmap_mode="r") for outcome in outcomes)
        answers_a, answers_b = (outcome.answers for outcome in outcomes)
        found = divergence.compare(rows_a, rows_b, list(map(len, texts.answers)), answers_a, answers_b)
    verdict = report.rule(found, outcomes)
    report.print_comparison(sides, outcomes, texts, found, verdict, inputs.tokenizer)
    files = report.write_comparison(directory, sides, outcomes, texts, found, verdict)
    print(f"written to {directory}: {', '.join(file.name for file in files)}")
    if verdict == "broken":
        sys.exit(1)


def _side(name: str, entries: tuple[str, ...], common: list[str]) -> Side:
    from graph_gemma.runners.comparison.side import TRANSFORMERS, Side

    overrides = [entry for entry in entries if entry != TRANSFORMERS]
    wrong = next((entry for entry in overrides if "=" not in entry), None)
    if wrong is not None:
        raise UserError(
            f"{name} holds {shown(wrong)}; it must be a list of settings, {name}=[dtype=float32,backend=eager], with "
            f"or without the word {TRANSFORMERS}."
        )
    return Side(name, (*common, *overrides), TRANSFORMERS in entries)


if __name__ == "__main__":
    main(compare, "compare")
