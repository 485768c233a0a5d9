"""Report a comparison: on the terminal, as a JSON summary, and as a CSV with a line per compared place."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from graph_gemma.graph_model.whole_files import write_file
from graph_gemma.runners.comparison.divergence import MAX_KL, MAX_SHARE, SMALL_KL, Divergence
from graph_gemma.runners.comparison.side import Outcome, Side, Texts
from graph_gemma.runners.io.files import time_stamp

Rule = Literal["holds", "broken", "none"]
_CONTEXT = 16  # tokens shown before a divergence


def rule(found: Divergence, outcomes: Sequence[Outcome]) -> Rule:
    """Whether the rule for two ways to compute the same precision holds; none where the precisions differ."""
    if len({outcome.precision for outcome in outcomes}) > 1:
        return "none"
    return "holds" if found.passes else "broken"


def print_comparison(
    sides: Sequence[Side], outcomes: Sequence[Outcome], texts: Texts, found: Divergence, verdict: Rule, tokenizer: Any
) -> None:
    for side, outcome in zip(sides, outcomes, strict=True):
        print(f"{side.name + ':':17} {str(side).strip() or 'the settings as they are'}")
        print(f"{side.name + ' ran on:':17} {outcome.backend}")
    print(f"compared:         {len(found.kl)} next-token distributions after {found.num_texts} prompts")
    print(f"token agreement:  {found.agreement:.2%} on the same prefixes, {found.same_answers} answers alike")
    kl = found.kl
    print(f"KL(a || b):       mean {kl.mean():.2e}, largest {kl.max():.2e}, share above 1e-4 {found.share:.2%}")
    place = found.first
    if place is None:
        print("divergence:       none, the most likely tokens are equal everywhere")
    else:
        text, step = int(found.texts[place]), int(found.steps[place])
        print(f"first divergence: prompt {text}, token {step} of the answer, after")
        print(f"  {_shown(_before(texts, text, step), tokenizer)}")
        for column, name in enumerate("ab"):
            at_a, at_b = (math.exp(side[place, column]) for side in (found.logprobs_a, found.logprobs_b))
            token = _shown([int(found.best[place, column])], tokenizer)
            print(f"  {name} takes {token}: probability {at_a:.4f} in a, {at_b:.4f} in b")
    if verdict == "none":
        print("rule:             none, the sides differ in precision")
    else:
        print(
            f"rule:             {verdict if verdict == 'holds' else 'BROKEN'} (same precision: largest KL <= "
            f"{MAX_KL:g}, share above {SMALL_KL:g} <= {MAX_SHARE:.1%})"
        )


def write_comparison(
    directory: Path, sides: Sequence[Side], outcomes: Sequence[Outcome], texts: Texts, found: Divergence, verdict: Rule
) -> list[Path]:
    """Write both files, under names that carry the time; returns their paths."""
    stamp = time_stamp()
    files = {
        directory / f"comparison_{stamp}.json": json.dumps(_summary(sides, outcomes, texts, found, verdict), indent=2),
        directory / f"positions_{stamp}.csv": _positions(outcomes, texts, found),
    }
    for path, text in files.items():
        write_file(path, text)
    return list(files)


def _summary(
    sides: Sequence[Side], outcomes: Sequence[Outcome], texts: Texts, found: Divergence, verdict: Rule
) -> dict[str, Any]:
    place = found.first
    first = None
    if place is not None:
        text, step = int(found.texts[place]), int(found.steps[place])
        first = {"prompt": text, "step": step, "after_token_ids": _before(texts, text, step)}
        first["token_ids"] = [int(token) for token in found.best[place]]
    return {
        **{
            side.name: {
                "computed_by": "transformers" if side.peer else "graph_gemma",
                "settings": list(side.overrides),
                "precision": outcome.precision,
                "backend": outcome.backend,
            }
            for side, outcome in zip(sides, outcomes, strict=True)
        },
        "prompts": found.num_texts,
        "positions": len(found.kl),
        "token_agreement": found.agreement,
        "same_answers": found.same_answers,
        "kl_mean": float(found.kl.mean()),
        "kl_max": float(found.kl.max()),
        "kl_share_above_1e-4": found.share,
        "rule": verdict,
        "first_divergence": first,
    }


def _positions(outcomes: Sequence[Outcome], texts: Texts, found: Divergence) -> str:
    columns = ("prompt", "step", "token_id", "kl", "best_a", "best_b", "a_in_a", "a_in_b", "b_in_a", "b_in_b")
    backends = {f"backend_{name}": outcome.backend for name, outcome in zip("ab", outcomes, strict=True)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *backends])
    answers = texts.answers
    for place, (prompt, step) in enumerate(zip(found.texts.tolist(), found.steps.tolist(), strict=True)):
        at_a, at_b = found.logprobs_a[place].tolist(), found.logprobs_b[place].tolist()
        logprobs = (at_a[0], at_b[0], at_a[1], at_b[1])
        best = found.best[place].tolist()
        writer.writerow([prompt, step, answers[prompt][step], found.kl[place], *best, *logprobs, *backends.values()])
    return text.getvalue()


def _before(texts: Texts, text: int, step: int) -> list[int]:
    end = texts.prompt_lengths[text] + step
    return texts.token_ids[text][max(0, end - _CONTEXT) : end]


def _shown(ids: list[int], tokenizer: Any) -> str:
    return repr(tokenizer.decode(ids)) if tokenizer is not None else str(ids)
