"""The other engines that a benchmark can measure: each is built from our weights in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.gguf.config import MODEL_TYPES
from graph_gemma.runners.benchmarking.runner import Runner
from graph_gemma.runners.benchmarking.timing import Case
from graph_gemma.runners.command_line.checkout import require_checkout
from graph_gemma.runners.settings.model_settings import ModelSettings

_PACKAGE = "graph_gemma.runners.benchmarking.peers"  # a module for each peer


@dataclass(frozen=True)
class PeerJob:
    """What a peer is made from."""

    model: ModelSettings  # of our side
    directory: Path  # floating-point weights of the model's dtype, as Hugging Face stores them
    converted: Path  # of this peer only: `convert` of its module writes it, `start` reads it
    cases: tuple[Case, ...]  # what it will run
    threads: int  # to compute with
    device: str = "cpu"  # cpu or cuda

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
    """Where a peer is built and what it needs."""

    module: str  # has `start(job) -> Runner`, and `convert(job)` if `converts`
    packages: dict[str, str]  # that must be installed: name of the module -> what pip calls it
    converts: bool = True
    model_types: tuple[str, ...] = ()  # what it can be built for, as config.json names it; (): all that we run


PEERS = {
    "floating_point": Peer("floating_point", {}, converts=False),
    "full_attention": Peer(
        "full_attention", {}, converts=False, model_types=(Gemma2Config.model_type, Gemma3Config.model_type)
    ),
    "transformers": Peer("transformers_eager", {"transformers": "transformers"}, converts=False),
    "transformers_compiled": Peer("transformers_compiled", {"transformers": "transformers"}, converts=False),
    "llama_cpp": Peer(
        "llama_cpp", {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}, model_types=(*MODEL_TYPES.values(),)
    ),
    "openvino": Peer("openvino", {"openvino": "openvino"}, model_types=(GemmaConfig.model_type,)),
    "ctranslate2": Peer("ctranslate2", {"ctranslate2": "ctranslate2"}, model_types=(GemmaConfig.model_type,)),
}


def check_names(names: list[str]) -> None:
    """Raise UserError at a name that no peer has, or that is given twice, and where the peers are not installed."""
    for name in names:
        if name not in PEERS:
            raise UserError(f"peers: {name!r} is unknown; there are {', '.join(PEERS)}.")
        if names.count(name) > 1:
            raise UserError(f"peers: {name!r} is given twice.")
    if names:
        require_checkout(_PACKAGE, f"peers is [{', '.join(names)}], but what builds other engines")


def unsuited(name: str, config: GemmaConfig) -> str:
    """Why a peer cannot be built for the model; "": it can."""
    known = PEERS[name].model_types
    if not known or config.model_type in known:
        return ""
    return f"it is built for model_type {' or '.join(known)} only, and the model is a {config.model_type}"


def missing_packages(name: str) -> list[str]:
    """The packages of a peer that are not installed, as pip calls them."""
    packages = PEERS[name].packages
    return [pip for module, pip in packages.items() if importlib.util.find_spec(module) is None]


def write_weights(settings: ModelSettings, directory: Path) -> None:
    """Write the weights that all peers are built from. Raises UserError."""
    importlib.import_module(f"{_PACKAGE}.weights").write_weights(settings, directory)


def convert(name: str, job: PeerJob) -> None:
    """Turn the weights into what the peer reads. Raises what the peer's own tools raise."""
    _module(name).convert(job)


def start(name: str, job: PeerJob) -> Runner:
    """The peer, ready to run. Raises what the peer raises."""
    runner: Runner = _module(name).start(job)
    return runner


def _module(name: str) -> Any:
    return importlib.import_module(f"{_PACKAGE}.{PEERS[name].module}")
