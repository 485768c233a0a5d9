"""Compare two configurations on the same prompts: python runners/compare.py a=[...] b=[...] [SETTING=VALUE ...]."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_model.errors import UserError
from runners.command_line.entry import main

if TYPE_CHECKING:
    from runners.comparison.side import Side


def compare(settings: Any) -> None:
    """Run both sides, print how far apart they are; exit status 1 if the same precision fails the rule."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    import numpy as np
    from hydra.core.hydra_config import HydraConfig

    from runners.comparison import divergence, report, side
    from runners.engine.sampling_params import SamplingParams
    from runners.io.inputs import read_inputs
    from runners.settings import resolve_settings, writable_directory

    given = HydraConfig.get().overrides.task
    common = [text for text in given if text.partition("=")[0] not in ("a", "b", "results_dir")]
    sides = [_side(name, settings[name], common) for name in ("a", "b")]
    if sides[0].peer == sides[1].peer and sides[0].overrides == sides[1].overrides:
        raise UserError("a and b are the same configuration. Give a=[SETTING=VALUE,...] or b=[...], or b=transformers.")
    inputs = read_inputs(settings, resolve_settings(settings))
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


def _side(name: str, value: Any, common: list[str]) -> Side:
    from runners.comparison.side import TRANSFORMERS, Side

    peer = value == TRANSFORMERS
    entries = [] if peer or value is None else [value] if isinstance(value, str) else list(value)
    peer = peer or TRANSFORMERS in entries
    overrides = [entry for entry in entries if entry != TRANSFORMERS]
    wrong = next((entry for entry in overrides if not isinstance(entry, str) or "=" not in entry), None)
    if wrong is not None:
        raise UserError(
            f"{name} holds {wrong!r}; it must be a list of settings, {name}=[dtype=float32,backend=eager], with or "
            f"without the word {TRANSFORMERS}."
        )
    return Side(name, (*common, *overrides), peer)


def quote_sides(arguments: list[str]) -> list[str]:
    """a=[dtype=float32,soc=x] as Hydra's grammar wants it, each setting in quotes: a=["dtype=float32","soc=x"]."""
    return [_quoted(text) if re.fullmatch(r"[ab]=\[[^'\"]*\]", text) else text for text in arguments]


def _quoted(argument: str) -> str:
    depth, entries = 0, [""]
    for character in argument[3:-1]:
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    return argument[:3] + ",".join(f'"{entry.strip()}"' for entry in entries if entry.strip()) + "]"


if __name__ == "__main__":
    sys.argv[1:] = quote_sides(sys.argv[1:])
    main(compare, "compare")
