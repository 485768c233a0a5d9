"""The settings of runners/verify.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import SMALLEST_CHUNK, InferSettings
from graph_gemma.runners.settings.schema import inherited, setting


class VerifySettings(InferSettings):
    """Check the Ascend graph: every op of its steps, alone, and whole steps with paging, chunks, a shared prefix,
    sampling and scoring. On a device: the device against the interpreter. Without CANN, on the stand-in: the
    interpreter against formulas and CPU kernels that were written independently of it. The result is a table and two
    files; the exit status is 1 if anything differs. The model's settings are those of graph-gemma infer; few and small
    steps are the default, which still come to every phase: the second prompt takes two chunks."""

    report_dir: str = setting("verify", "Directory for report.json and report.txt.")
    backend: str = inherited(InferSettings, "backend", "torchair")
    max_batch_size: int = inherited(InferSettings, "max_batch_size", 2)
    max_prefill_batch_size: int = inherited(InferSettings, "max_prefill_batch_size", 1)
    max_prefill_tokens: int = inherited(InferSettings, "max_prefill_tokens", SMALLEST_CHUNK)
    max_seq_len: int | None = inherited(InferSettings, "max_seq_len", 256)
