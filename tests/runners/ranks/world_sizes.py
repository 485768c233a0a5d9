"""Tokens of several world sizes by real processes: python world_sizes.py BACKEND OUT.json WORLD_SIZES NAME=PATH ...

This process is rank 0 of every model in turn. Per model and world size it writes greedy answers; sampled answers; and,
of both, the token that follows each prefix of world size 1's answer, which is drawn with the same random number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from runners.engine import SamplingParams, ScoreRequest
from runners.llm import LLM

PROMPTS = [[5, 7, 11], [9, *range(3, 14)], [6, 7, *range(40, 70)], [8, 7]]
NEW_TOKENS = 8
HOW = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
}
# Few steps to compile: all requests of a batch have the same number of tokens to go.
SIZES = ["max_batch_size=4", "max_prefill_batch_size=4", "max_seq_len=64", "max_prefill_tokens=256"]


def sampling(how: str, row: int, new_tokens: int) -> SamplingParams:
    return SamplingParams(**HOW[how], seed=row, max_new_tokens=new_tokens, ignore_eos=True)


def answers(llm: LLM, how: str) -> list[list[int]]:
    given = [sampling(how, row, NEW_TOKENS) for row in range(len(PROMPTS))]
    return [result.token_ids for result in llm.generate(PROMPTS, given)]


def next_tokens(llm: LLM, how: str, reference: list[list[int]]) -> list[list[int]]:
    """What follows each prefix of the reference's answers."""
    places = [(row, step) for row in range(len(PROMPTS)) for step in range(NEW_TOKENS)]
    prompts = [[*PROMPTS[row], *reference[row][:step]] for row, step in places]
    found = llm.generate(prompts, [sampling(how, row, 1) for row, _ in places])
    flat = [result.token_ids[0] for result in found]
    return [flat[row * NEW_TOKENS : (row + 1) * NEW_TOKENS] for row in range(len(PROMPTS))]


def distributions(llm: LLM, reference: list[list[int]]) -> list[Any]:
    """Log-probabilities [tokens of an answer, vocabulary] of each answer's places."""
    requests = [
        ScoreRequest([*prompt, *answer[:-1]], list(range(len(prompt) - 1, len(prompt) + NEW_TOKENS - 1)))
        for prompt, answer in zip(PROMPTS, reference, strict=True)
    ]
    return [scores.logprobs.tolist() for scores in llm.score(requests)]


def main() -> None:
    backend, path, sizes, *models = sys.argv[1:]
    written: dict[str, dict[str, Any]] = {}
    for name, settings in (model.split("=", 1) for model in models):
        found = written.setdefault(name, {})
        for world_size in map(int, sizes.split(",")):
            given = [*settings.split(";"), f"backend={backend}", f"world_size={world_size}", "ranks.master_port=null"]
            with LLM([*given, *SIZES]) as llm:
                of_size = found.setdefault(str(world_size), {})
                for how in HOW:
                    of_size[how] = {"answers": answers(llm, how)}
                    reference = found["1"][how]["answers"]
                    of_size[how]["next"] = next_tokens(llm, how, reference)
                    if world_size == 1:
                        of_size[how]["logprobs"] = distributions(llm, reference)
            print(name, world_size, flush=True)
    Path(path).write_text(json.dumps(written))


if __name__ == "__main__":
    main()
