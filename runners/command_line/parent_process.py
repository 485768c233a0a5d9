"""Ending with the process that started this one; without torch, whose import takes seconds."""

from __future__ import annotations

import os
import signal
import sys

PARENT = "GRAPH_GEMMA_PARENT"  # the process that starts ranks says its id here
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """End this rank at an interruption (Ctrl-C), and as soon as the process that started it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes  # --help need not wait for it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)  # it ended before it could be watched


def is_rank() -> bool:
    """Whether torch's elastic agent started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
