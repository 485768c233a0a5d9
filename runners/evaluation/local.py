"""Local data: yes/no accuracy of BoolQ items, and the perplexity of a text."""

from __future__ import annotations

import math
from pathlib import Path

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.evaluation.items import BoolQItem
from graph_gemma.runners.evaluation.likelihood import loglikelihoods, windows
from graph_gemma.runners.evaluation.report import TaskReport
from graph_gemma.runners.llm import LLM

ANSWERS = (" no", " yes")


def boolq(llm: LLM, name: str, items: list[BoolQItem]) -> TaskReport:
    """Accuracy on yes/no items: right if the answer, after the prompt, is more probable than the other one.

    The standard error is that of a mean: the samples' standard deviation over the root of their number. Raises
    UserError if an item is longer than max_seq_len.
    """
    limit = llm.settings.max_seq_len
    pairs = []
    for item in items:
        prompt = llm.encode(item.prompt)
        for answer in ANSWERS:
            whole = llm.encode(item.prompt + answer)
            if len(whole) > limit:
                raise UserError(
                    f"{item.source}: prompt and answer have {len(whole)} tokens, and max_seq_len is {limit}. Raise "
                    "max_seq_len, or shorten the passage."
                )
            pairs.append((prompt, whole[len(prompt) :]))
    found = loglikelihoods(llm, pairs, name, limit)
    samples: list[dict[str, object]] = []
    for index, (item, no, yes) in enumerate(zip(items, found[::2], found[1::2], strict=True)):
        choice = yes.logprob > no.logprob
        samples.append(
            {
                "doc_id": index,
                "prompt": item.prompt,
                "target": "yes" if item.answer else "no",
                "choice": "yes" if choice else "no",
                "logprob_yes": yes.logprob,
                "logprob_no": no.logprob,
                "acc": float(choice == item.answer),
            }
        )
    hits = [float(sample["acc"]) for sample in samples]  # type: ignore[arg-type]
    accuracy = sum(hits) / len(hits)
    metrics: dict[str, object] = {"acc,none": accuracy, "acc_stderr,none": "N/A"}
    if len(hits) > 1:
        metrics["acc_stderr,none"] = math.sqrt(sum((hit - accuracy) ** 2 for hit in hits) / (len(hits) - 1) / len(hits))
    return TaskReport(name, metrics, samples, len(items))


def perplexity(llm: LLM, path: Path) -> TaskReport:
    """exp of the mean negative log-likelihood per token, in windows of max_seq_len; also per word and per byte.

    A word is what white space separates, as lm-evaluation-harness counts. Every window begins with the <bos> that the
    tokenizer puts before the text: Gemma needs it. Raises UserError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"perplexity: {path} cannot be read ({error}). Give a text file in UTF-8.") from None
    token_ids, bos = llm.encode(text), llm.tokenizer.bos_token_id
    if llm.settings.max_seq_len < 3:
        raise UserError(
            "perplexity: a window has <bos>, a token before and one that is predicted: max_seq_len=3 at least."
        )
    pairs = list(windows(token_ids, llm.settings.max_seq_len - 1, bos if token_ids[:1] == [bos] else None))
    words = len(text.split())
    if not pairs or not words:
        raise UserError(f"perplexity: {path} has no text to score. Give a file with at least one word.")
    found = loglikelihoods(llm, pairs, path.name, llm.settings.max_seq_len)
    samples: list[dict[str, object]] = [
        {"doc_id": index, "tokens": len(continuation), "logprob": one.logprob}
        for index, ((_, continuation), one) in enumerate(zip(pairs, found, strict=True))
    ]
    tokens = sum(len(continuation) for _, continuation in pairs)
    total = sum(one.logprob for one in found)
    metrics: dict[str, object] = {
        "token_perplexity,none": math.exp(-total / tokens),
        "word_perplexity,none": math.exp(min(-total / words, 700.0)),
        "byte_perplexity,none": math.exp(-total / len(text.encode())),
        "bits_per_byte,none": -total / len(text.encode()) / math.log(2),
    }
    return TaskReport(path.name, metrics, samples, len(samples))
