"""EngineDrivers on the fake model, and the prompts and answers of their tests."""

from __future__ import annotations

from graph_gemma.runners.engine import EngineDriver, SamplingParams
from support.engine_fakes import FakeModel, byte_level_tokenizer, expected_tokens

TOKENIZER = byte_level_tokenizer()
PROMPTS = [[base] * (3 + base) for base in range(6)]
SAMPLING = SamplingParams(max_new_tokens=10)


def make_llm(**arguments: object) -> EngineDriver:
    model = FakeModel(**arguments)  # type: ignore[arg-type]
    llm = EngineDriver(model, TOKENIZER)
    model.blocks = llm.engine.blocks
    return llm


def expected(index: int) -> list[int]:
    return expected_tokens(PROMPTS[index], SAMPLING, 64)


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""
