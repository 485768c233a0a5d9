"""A short run of tests/fuzz.py: what reads files of others ends in a result or a UserError, soon."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzz_targets import TARGETS, TooSlowError, attempt

from graph_gemma.graph_model.errors import UserError


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        attempt(TARGETS[name], data)

    run()


def test_other_errors_are_found() -> None:
    def refuse(data: object, directory: object) -> None:
        raise UserError("no")

    def fail(data: object, directory: object) -> None:
        raise KeyError("no")

    assert attempt(lambda data, directory: None, None)
    assert not attempt(refuse, None)
    with pytest.raises(KeyError):
        attempt(fail, None)


def test_what_takes_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.fuzz_targets.SECONDS", 0.1)

    def forever(data: object, directory: object) -> None:
        while True:
            pass

    with pytest.raises(TooSlowError):
        attempt(forever, None)
