"""The settings of runners/compare.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.schema import setting


class CompareSettings(InferSettings):
    """Compare two configurations on the same prompts: a answers them greedily, and both give the distribution of every
    next token of these answers. Each side is computed in a process of its own. Prompts and settings of the model are
    those of graph-gemma infer and hold for both sides; sampling has no meaning here. The exit status is 1 if two ways
    to compute the same precision are further apart than the rule allows: largest KL divergence 1e-3, share above 1e-4
    at most 0.5 %."""

    a: tuple[str, ...] = setting(
        [],
        "Settings of the one side besides the common ones, [dtype=float32,backend=eager]; with the word transformers "
        "in the list, or in its place, the side is computed by transformers.",
    )
    b: tuple[str, ...] = setting([], "Settings of the other side: [backend=torchair], [quant=w8a16], transformers.")
    results_dir: str = setting(
        "comparison_results",
        "Directory for comparison_TIME.json and positions_TIME.csv, a line per compared distribution.",
    )
