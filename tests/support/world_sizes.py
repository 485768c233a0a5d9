"""Tokens of several world sizes by real processes: python world_sizes.py REQUEST.json OUT.json

This process is rank 0 of every model in turn. Per model and world size it writes greedy answers; sampled answers; and,
of both, the token that follows each prefix of world size 1's answer, which is drawn with the same random number.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graph_gemma.runners.engine import SamplingParams, ScoreRequest
from graph_gemma.runners.llm import LLM
from support.rank_processes import start

HOW = {"greedy": 0.0, "sampled": 1.0}  # temperatures
# Few steps to compile: all requests of a batch have the same number of tokens to go.
SIZES = ["max_batch_size=4", "max_prefill_batch_size=4", "max_seq_len=64", "max_prefill_tokens=256"]


@dataclass(frozen=True)
class Request:
    """What is to be answered."""

    models: dict[str, list[str]]  # overrides by name
    world_sizes: list[int]
    prompts: list[list[int]]  # token ids
    new_tokens: int  # of every answer
    how: list[str]  # which of HOW


def sampling(how: str, row: int, new_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=HOW[how], seed=row, max_new_tokens=new_tokens, ignore_eos=True)


def answers(llm: LLM, request: Request, how: str) -> list[list[int]]:
    given = [sampling(how, row, request.new_tokens) for row in range(len(request.prompts))]
    return [result.token_ids for result in llm.generate(request.prompts, given)]


def next_tokens(llm: LLM, request: Request, how: str, reference: list[list[int]]) -> list[list[int]]:
    """What follows each prefix of the reference's answers."""
    prompts, steps = request.prompts, request.new_tokens
    places = [(row, step) for row in range(len(prompts)) for step in range(steps)]
    prefixes = [[*prompts[row], *reference[row][:step]] for row, step in places]
    found = llm.generate(prefixes, [sampling(how, row, 1) for row, _ in places])
    flat = [result.token_ids[0] for result in found]
    return [flat[row * steps : (row + 1) * steps] for row in range(len(prompts))]


def distributions(llm: LLM, request: Request, reference: list[list[int]]) -> list[Any]:
    """Log-probabilities [tokens of an answer, vocabulary] of each answer's places."""
    requests = [
        ScoreRequest([*prompt, *answer[:-1]], list(range(len(prompt) - 1, len(prompt) + request.new_tokens - 1)))
        for prompt, answer in zip(request.prompts, reference, strict=True)
    ]
    return [scores.logprobs.tolist() for scores in llm.score(requests)]


def run(request: Request) -> dict[str, dict[str, Any]]:
    written: dict[str, dict[str, Any]] = {}
    for name, settings in request.models.items():
        found = written.setdefault(name, {})
        for world_size in request.world_sizes:
            with LLM([*SIZES, *settings, f"world_size={world_size}", "ranks.master_port=null"]) as llm:
                of_size = found.setdefault(str(world_size), {})
                for how in request.how:
                    of_size[how] = {"answers": answers(llm, request, how)}
                    reference = found["1"][how]["answers"]
                    of_size[how]["next"] = next_tokens(llm, request, how, reference)
                    if world_size == 1:
                        of_size[how]["logprobs"] = distributions(llm, request, reference)
            print(name, world_size, flush=True)
    return written


def tokens_of(request: Request, directory: Path) -> dict[str, dict[str, Any]]:
    """`run` in a program of its own, which leads the ranks of all models; files go to `directory`."""
    asked, out = directory / "request.json", directory / "found.json"
    asked.write_text(json.dumps(asdict(request)))
    process = start([__file__, str(asked), str(out)])
    printed, errors = process.communicate(timeout=5400)
    assert process.returncode == 0, printed + errors
    found: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return found


if __name__ == "__main__":
    asked, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(run(Request(**json.loads(asked.read_text())))))
