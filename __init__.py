"""Gemma inference on Huawei Ascend NPUs as one static graph: LLM answers prompts with a model of a directory.

    from graph_gemma import LLM

    with LLM(model="DIR") as llm:
        print(llm.generate("The capital of France is", max_tokens=20)[0].text)

docs/library.md says what is promised of these names. Importing this package takes milliseconds: torch is imported when
a model is loaded.
"""

import os

__version__ = "0.1.0"

# torch loads the backend of an installed torch_npu while it is imported, and fails where CANN is absent.
# The Ascend backend loads torch_npu itself, when it is asked for.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

# torch's own kernels and those that Inductor compiles have a pool of OpenMP threads each. Threads that spin while
# they wait, as GNU OpenMP's do for about a millisecond, keep the other pool off the cores: with two cores and another
# busy process, a decode step of the demo took 92 ms with the default and 5 ms with this.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# Weights in huge pages: where a hypervisor translates addresses a second time, reading them in pages of 4 kB reached 16
# of 28 GB/s. torch asks for them where this is set before its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

TYPE_CHECKING = False  # typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from graph_gemma.graph_model.errors import UserError
    from graph_gemma.runners.engine import RequestResult, SamplingParams, ScoreRequest, Scores, TokenEvent
    from graph_gemma.runners.llm import LLM

__all__ = [
    "LLM",
    "RequestResult",
    "SamplingParams",
    "ScoreRequest",
    "Scores",
    "TokenEvent",
    "UserError",
    "__version__",
]

_PLACES = {
    "LLM": "graph_gemma.runners.llm",
    "UserError": "graph_gemma.graph_model.errors",
    **dict.fromkeys(
        ("RequestResult", "SamplingParams", "ScoreRequest", "Scores", "TokenEvent"), "graph_gemma.runners.engine"
    ),
}


def __getattr__(name: str) -> object:
    """Import what the name stands for when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
