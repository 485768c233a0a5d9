"""The engine: many requests at once through steps of a compiled model."""

from runners.engine.driver import EngineDriver
from runners.engine.engine import Engine
from runners.engine.model import StepModel
from runners.engine.result import FinishReason, RequestResult, Scores, TokenEvent, TokenLogprobs, raise_errors
from runners.engine.sampling_params import SamplingParams
from runners.engine.scoring import ScoreRequest
from runners.engine.statistics import Statistics

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
