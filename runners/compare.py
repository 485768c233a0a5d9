"""Compare two configurations on the same prompts: python runners/compare.py a=[...] b=[...] [SETTING=VALUE ...]."""

from __future__ import annotations

import math
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_model.errors import UserError
from runners.entry import main

if TYPE_CHECKING:
    from runners.comparison.divergence import Divergence
    from runners.comparison.side import Side, Texts


def compare(settings: Any) -> None:
    """Run both sides, print how far apart they are; exit status 1 if the same precision fails the rule."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    import numpy as np
    from hydra.core.hydra_config import HydraConfig

    from runners.comparison import divergence
    from runners.comparison.side import Texts, run_side
    from runners.inputs import read_inputs
    from runners.settings import resolve_settings

    given = HydraConfig.get().overrides.task
    common = [text for text in given if text.partition("=")[0] not in ("a", "b")]
    sides = [_side(name, settings[name], common) for name in ("a", "b")]
    if sides[0].peer == sides[1].peer and sides[0].overrides == sides[1].overrides:
        raise UserError("a and b are the same configuration. Give a=[SETTING=VALUE,...] or b=[...], or b=transformers.")
    inputs = read_inputs(settings, resolve_settings(settings))
    prompts = [prompt.token_ids for prompt in inputs.prompts]
    texts = Texts(prompts, [len(prompt) for prompt in prompts])
    with tempfile.TemporaryDirectory() as folder:
        texts, a = run_side(sides[0], texts, settings.max_new_tokens, Path(folder) / "a.npy")
        texts, b = run_side(sides[1], texts, settings.max_new_tokens, Path(folder) / "b.npy")
        rows_a, rows_b = (np.load(outcome.logprobs, mmap_mode="r") for outcome in (a, b))
        if rows_a.shape != rows_b.shape:
            raise UserError(
                f"a has a vocabulary of {rows_a.shape[1]} tokens and b one of {rows_b.shape[1]}; only models with the "
                "same vocabulary can be compared."
            )
        found = divergence.compare(rows_a, rows_b, list(map(len, texts.answers)), a.answers, b.answers)
    print_comparison(sides, texts, found, inputs.tokenizer)
    if a.precision != b.precision:
        print("rule:             none, the sides differ in precision")
        return
    verdict = "holds" if found.passes else "BROKEN"
    print(
        f"rule:             {verdict} (same precision: largest KL <= {divergence.MAX_KL:g}, share above "
        f"{divergence.SMALL_KL:g} <= {divergence.MAX_SHARE:.1%})"
    )
    if not found.passes:
        sys.exit(1)


def print_comparison(sides: list[Side], texts: Texts, found: Divergence, tokenizer: Any) -> None:
    for side in sides:
        print(f"{side.name + ':':17} {str(side).strip() or 'the settings as they are'}")
    print(f"compared:         {found.positions} next-token distributions behind {found.texts} prompts")
    print(f"token agreement:  {found.agreement:.2%} on the same prefixes, {found.same_answers} answers alike")
    kl = found.kl
    print(f"KL(a || b):       mean {kl.mean():.2e}, largest {kl.max():.2e}, share above 1e-4 {found.share:.2%}")

    def shown(ids: list[int]) -> str:
        return repr(tokenizer.decode(ids)) if tokenizer is not None else str(ids)

    if not found.first:
        print("divergence:       none, the likeliest tokens are equal everywhere")
    for place in found.first[:1]:
        ids, start = texts.token_ids[place.text], texts.prompt_lengths[place.text]
        print(f"first divergence: prompt {place.text}, token {place.step} of the answer, behind")
        print(f"  {shown(ids[max(0, start + place.step - 16) : start + place.step])}")
        for name, token, at_a, at_b in zip("ab", place.tokens, place.logprobs_a, place.logprobs_b, strict=True):
            print(f"  {name} takes {shown([token])}: probability {math.exp(at_a):.4f} in a, {math.exp(at_b):.4f} in b")


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
