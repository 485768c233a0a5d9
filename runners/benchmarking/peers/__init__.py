"""What a user would run instead, on the same weights: each peer in a module and a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_model.config import GemmaConfig
from graph_model.errors import UserError
from runners.benchmarking.runner import Runner
from runners.benchmarking.timing import Case
from runners.settings.model_settings import ModelSettings


@dataclass(frozen=True)
class PeerJob:
    """What a peer is made from.

    model: our side's settings. directory: floating-point weights of its dtype, as Hugging Face stores them. converted:
    a path of the peer's own, where `convert` of its module leaves what `start` reads. cases: what it will run. threads:
    to compute with. device: cpu or cuda.
    """

    model: ModelSettings
    directory: Path
    converted: Path
    cases: tuple[Case, ...]
    threads: int
    device: str = "cpu"

    @property
    def config(self) -> GemmaConfig:
        return self.model.config

    @property
    def dtype(self) -> str:
        return self.model.dtype

    @property
    def int8(self) -> bool:
        """Whether our side has int8 weights, so that a peer that can has them too."""
        return self.model.quantization is not None and self.model.quantization.scheme is not None

    @property
    def max_batch_size(self) -> int:
        return max(case.batch for case in self.cases)

    @property
    def max_seq_len(self) -> int:
        return max(case.prompt + case.answer for case in self.cases)


@dataclass(frozen=True)
class Peer:
    """module: has `start(job) -> Runner`, and `convert(job)` if `converts`. packages: what must be installed, as it is
    imported and as pip calls it."""

    module: str
    packages: dict[str, str]
    converts: bool = True


PEERS = {
    "floating_point": Peer("floating_point", {}, converts=False),
    "transformers": Peer("transformers_eager", {"transformers": "transformers"}, converts=False),
    "transformers_compiled": Peer("transformers_compiled", {"transformers": "transformers"}, converts=False),
    "llama_cpp": Peer("llama_cpp", {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}),
    "openvino": Peer("openvino", {"openvino": "openvino"}),
    "ctranslate2": Peer("ctranslate2", {"ctranslate2": "ctranslate2"}),
}


def check_names(names: list[str]) -> None:
    """Raise UserError at a name that no peer has, or that is given twice."""
    for name in names:
        if name not in PEERS:
            raise UserError(f"peers: {name!r} is unknown; there are {', '.join(PEERS)}.")
        if names.count(name) > 1:
            raise UserError(f"peers: {name!r} is given twice.")


def missing_packages(name: str) -> list[str]:
    """The packages of a peer that are not installed, as pip calls them."""
    packages = PEERS[name].packages
    return [pip for module, pip in packages.items() if importlib.util.find_spec(module) is None]


def convert(name: str, job: PeerJob) -> None:
    """Turn the weights into what the peer reads. Raises what the peer's own tools raise."""
    _module(name).convert(job)


def start(name: str, job: PeerJob) -> Runner:
    """The peer, ready to run. Raises what the peer raises."""
    runner: Runner = _module(name).start(job)
    return runner


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{PEERS[name].module}")
