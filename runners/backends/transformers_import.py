"""transformers' model classes, also where torch_npu is installed and CANN is not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.standin.loader import cann_is_present


def import_transformers() -> Any:
    """The module transformers, whose model classes can be used: a process calls this before it touches one of them.

    transformers imports an installed torch_npu to ask for its devices, and fails where CANN's libraries are absent.
    There it is told that torch_npu is not installed. It remembers the answer; torch_npu itself can be loaded later.
    """
    with _unloadable_torch_npu_hidden():
        import transformers
        from transformers.models.gemma import modeling_gemma  # noqa: F401 (imports what would look for torch_npu)
        from transformers.utils import is_torch_npu_available

        is_torch_npu_available()
        transformers.GemmaForCausalLM  # noqa: B018 (a lazy attribute, resolved here)
    return transformers


@contextmanager
def _unloadable_torch_npu_hidden() -> Iterator[None]:
    if "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu") is None or _cann_is_usable():
        yield
        return
    sys.modules["torch_npu"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch_npu"]


def _cann_is_usable() -> bool:
    try:
        return cann_is_present()
    except UserError:  # half installed, or its set_env.sh was not sourced: torch_npu cannot be imported either
        return False
