"""Gemma as a captured, rewritten, lowered graph."""

import os

# torch loads the backend of an installed torch_npu while it is imported, and fails where CANN is absent.
# The Ascend backend loads torch_npu itself, when it is asked for.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
