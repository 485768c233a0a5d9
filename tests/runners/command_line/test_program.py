"""graph-gemma COMMAND: its commands, --version, its help, and what a shell completes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from support.checkout import ROOT

from graph_gemma import __version__
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.completion import candidates, script
from graph_gemma.runners.command_line.program import COMMANDS, run
from graph_gemma.runners.settings.declared import COMMANDS as DECLARED
from graph_gemma.runners.settings.declared import settings_of

WORKSHOP = {"compile_matrix"}  # what makes the tables of docs/


def called(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple:
    """Status, stdout and stderr of graph-gemma ARGUMENTS."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/graph-gemma", *arguments])
    status = 0
    try:
        run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    return status, *capsys.readouterr()


def test_every_command_is_there_and_has_its_function() -> None:
    assert set(COMMANDS.values()) | WORKSHOP == set(DECLARED)
    for module in COMMANDS.values():
        assert callable(getattr(import_module(f"graph_gemma.runners.{module}"), module))


def test_help_has_a_line_for_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = called(["--help"], capsys, monkeypatch)
    assert status == 0
    assert called([], capsys, monkeypatch)[1] == out
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in lines] == [*COMMANDS, "completion"]
    assert max(map(len, lines)) <= 120


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(["--version"], capsys, monkeypatch) == (0, f"graph-gemma {__version__}\n", "")


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, error = called(["infre"], capsys, monkeypatch)
    assert (status, error.partition(" graph-")[0]) == (2, "error: There is no command infre. Did you mean infer?")


def test_a_commands_help_says_how_it_was_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = called(["inspect", "--help"], capsys, monkeypatch)
    assert "usage: graph-gemma inspect [SETTING=VALUE ...]" in out


def test_a_commands_settings_come_after_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, error = called(["infer", "dtype=x"], capsys, monkeypatch)
    assert (status, error) == (2, "error: dtype is 'x'; it must be float16, bfloat16 or float32, or null.\n")


def test_the_console_script_is_this_function() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'graph-gemma = "{run.__module__.replace("tests.checkout.", "")}:{run.__name__}"' in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("graph-gemma inf", ["infer "]),
        ("graph-gemma --v", ["--version "]),
        ("graph-gemma completion ", ["bash ", "zsh "]),
        ("graph-gemma infer dty", ["dtype="]),
        ("graph-gemma infer sampling.top", ["sampling.top_k=", "sampling.top_p="]),
        ("graph-gemma infer backend=eager dtype=b", ["bfloat16 "]),
        ("graph-gemma quantize quant=w8a8", ["w8a8 ", "w8a8_dynamic "]),
        ("graph-gemma infer chat=", ["true ", "false "]),
        ("graph-gemma infer passes.rotary.enabled=f", ["false "]),
        ("graph-gemma infer model.path=", []),
        ("graph-gemma nothing dty", []),
    ],
)
def test_a_shell_completes(line: str, expected: list[str]) -> None:
    assert candidates(line, COMMANDS) == expected


def test_every_setting_is_completed() -> None:
    for command, module in COMMANDS.items():
        found = candidates(f"graph-gemma {command} ", COMMANDS)
        assert len(found) > len(vars(settings_of(module))) / 2
        assert "--help" in found


def test_bash_calls_it_for_the_word_at_the_cursor() -> None:
    program = "from graph_gemma.runners.command_line.program import run; run()"
    shell = (
        f"graph-gemma() {{ {sys.executable} -c '{program}' \"$@\"; }}\n"
        f"{script(['bash'])}\nCOMP_LINE='graph-gemma infer dtype=fl and more' COMP_POINT=26 _graph_gemma\n"
        "printf '%s|' \"${COMPREPLY[@]}\""
    )
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert result.stdout == "float16 |float32 |"


def test_a_shell_without_a_completion_is_named() -> None:
    with pytest.raises(UserError, match="'fish' is no shell that there is a completion for; there is one for bash and"):
        script(["fish"])
