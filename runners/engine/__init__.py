"""The engine: many requests at once through steps of a compiled model."""

from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.engine import Engine
from graph_gemma.runners.engine.model import StepModel
from graph_gemma.runners.engine.result import (
    FinishReason,
    RequestResult,
    Scores,
    TokenEvent,
    TokenLogprobs,
    raise_errors,
)
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scoring import ScoreRequest
from graph_gemma.runners.engine.statistics import Statistics

__all__ = [
    "Engine",
    "EngineDriver",
    "FinishReason",
    "RequestResult",
    "SamplingParams",
    "ScoreRequest",
    "Scores",
    "Statistics",
    "StepModel",
    "TokenEvent",
    "TokenLogprobs",
    "raise_errors",
]
