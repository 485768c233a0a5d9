"""Answer the prompts of infer.py: print the answers as they come, and name requests that failed."""

from __future__ import annotations

import sys

from tqdm import tqdm

from graph_gemma.runners.engine.result import RequestResult, TokenEvent
from graph_gemma.runners.io.inputs import Inputs
from graph_gemma.runners.io.output import OutputFile
from graph_gemma.runners.llm import LLM


def answer(llm: LLM, inputs: Inputs, output: OutputFile) -> list[RequestResult]:
    """All prompts' results, in order. One prompt streams to stdout; many show a progress bar, then the answers."""
    if len(inputs.prompts) == 1:
        return _stream(llm, inputs, output)
    with tqdm(total=len(inputs.prompts), unit="prompt", file=sys.stderr, dynamic_ncols=True) as bar:

        def follow(index: int, event: TokenEvent) -> None:
            if event.result is not None:
                output.write(index, inputs.prompts[index].text, event.result, llm.loaded.backend)
                statistics = llm.engine.statistics
                bar.set_postfix_str(
                    f"prefill {statistics.prefill_tokens_per_s:.0f} tokens/s, "
                    f"decode {statistics.decode_tokens_per_s:.0f} tokens/s",
                    refresh=False,
                )
                bar.update()

        results = llm.generate([prompt.token_ids for prompt in inputs.prompts], inputs.sampling, follow)
    for prompt, result in zip(inputs.prompts, results, strict=True):
        print(f"\n{_shown(prompt.text, prompt.token_ids)}{_shown(result.text or None, result.token_ids)}")
    return results


def name_failures(results: list[RequestResult]) -> bool:
    """Name on stderr each request that ended with an error, by the place of its prompt; whether there was one."""
    failed = [(index, result.error) for index, result in enumerate(results) if result.finish_reason == "error"]
    for index, error in failed:
        print(f"error: the request of prompt {index} failed: {type(error).__name__}: {error}", file=sys.stderr)
    return bool(failed)


def _stream(llm: LLM, inputs: Inputs, output: OutputFile) -> list[RequestResult]:
    (prompt,) = inputs.prompts
    print("\n" + _shown(prompt.text, prompt.token_ids), end="", flush=True)
    for event in llm.stream(prompt.token_ids, inputs.sampling[0]):
        piece = event.text if inputs.tokenizer is not None else f" {event.token_id}"
        print(piece, end="", flush=True)
        if event.result is not None:
            output.write(0, prompt.text, event.result, llm.loaded.backend)
            result = event.result
    print()
    return [result]


def _shown(text: str | None, token_ids: list[int]) -> str:
    return text if text is not None else " " + " ".join(map(str, token_ids))
