"""Tests of a chip run in its process and are reported as if they had run in this one. Nothing is loaded here."""

from __future__ import annotations

import pytest
from support.chip_processes import ROOT

CONFTEST = """
import pytest
from support import chip_processes

pytest_plugins = ["support.chip_processes"]
chip_processes.load_torch_npu = lambda chip: None
chip_processes.what_is_missing = lambda: ""

def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true")
"""
TESTS = """
import os
import pytest

HERE = os.environ.setdefault("FIRST_PROCESS", str(os.getpid()))
made = []

@pytest.fixture(scope="module")
def value():
    made.append(1)
    yield len(made)
    print("value is gone")

@pytest.mark.chip
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("soc", ["atlas_800i_a2", "atlas_300i_duo"])
def test_sum(soc, number, value):
    assert value == 1
    assert str(os.getpid()) != HERE
    print("from the chip")
    assert number + 1 == 2

def test_here():
    assert str(os.getpid()) == HERE

@pytest.mark.chip("atlas_800i_a2")
def test_skipped():
    pytest.skip("not now")

@pytest.mark.chip("atlas_800i_a2")
def test_end():
    os._exit(3)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(
        f"[pytest]\npythonpath = {ROOT} {ROOT / 'tests'}\naddopts = -m 'not slow'\nmarkers =\n  ascend\n  chip\n  slow"
    )
    pytester.makeconftest(CONFTEST)
    slow = "import pytest\n@pytest.mark.slow\n@pytest.mark.chip('atlas_800i_a2')\ndef test_slow(): pass\n"
    pytester.makepyfile(test_first=TESTS, test_second=f"def test_other(): pass\n{slow}")
    return pytester


def test_outcomes_of_chip_processes_are_reported_here(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("-v", "-m", "")
    result.assert_outcomes(passed=5, failed=3, skipped=1)
    result.stdout.fnmatch_lines_random(
        ["*test_sum[[]atlas_300i_duo-2] FAILED*", "E*assert (2 + 1) == 2", "from the chip", "*SKIPPED (not now)*"]
    )
    result.stdout.fnmatch_lines_random(
        ["the process of atlas_800i_a2 ended in this test: status 3", "test_first.py::test_end*"]
    )


def test_the_option_chip_runs_its_tests_in_this_process(suite: pytest.Pytester) -> None:
    result = suite.runpytest_subprocess("--chip=atlas_300i_duo", "-k", "test_sum and 1")
    result.assert_outcomes(failed=1, deselected=8)
    result.stdout.fnmatch_lines([">*assert str(os.getpid()) != HERE"])
