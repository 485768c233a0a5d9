"""What every command shares: settings, exit codes, messages and --help."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from signal import SIGINT

import pytest
import yaml

from graph_gemma.runners.command_line.entry import CONF
from graph_gemma.runners.command_line.help_text import help_text
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.schema import Group, Settings, Switches, members, names

PROGRAM = """
from __future__ import annotations
import sys, time
from pathlib import Path
from typing import ClassVar
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import run_command
from graph_gemma.runners.settings.schema import Option, Settings, Switch, group, required, setting, switches

class Shape(Settings):
    side: int = setting(1, "Length of a side.")
    radius: float = setting(0.0, "Half the width.")
    options: ClassVar = {"square": Option("Four sides."), "circle": Option("No side.", {"side": 0, "radius": 2.5})}

class Nested(Settings):
    inner: tuple[int, ...] = setting([1, 2], "Inner one.")
    text: str | None = setting(None, "A text.")

class ProgramSettings(Settings):
    '''Does one thing, and
    does it well.'''

    shape: Shape = group(Shape, "Which shape.", option="square")
    action: str = required("what to do", "What to do, in one word.")
    size: int = setting(3, "How large.")
    nested: Nested = group(Nested, "Some more.")
    steps: dict = switches(
        "All steps.",
        {"one": Switch("The first.", {"enabled": True}), "two": Switch("The second.", {"enabled": False, "width": 4})},
    )

def run(settings):
    if settings.action == "refuse":
        raise UserError("the first line\\nand the second")
    if settings.action == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if settings.action == "talk":
        for _ in range(100_000):
            print("x" * 100)
    print("size", settings.size, settings.shape.side, settings.nested.text, "evaluate" in sys.modules)
    if settings.action == "arguments":
        print(sys.argv[1:] == list(settings.given))

run_command(run, ProgramSettings, "program", str(Path(__file__).parent))
"""

CONFIG = """\
defaults:
  - shape: square
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled

action: null
size: 3
nested:
  inner: [1, 2]
  text: ${action} ${size}
steps:
  one: {enabled: true}
  two: {enabled: false, width: 4}

hydra:
  run:
    dir: .
  output_subdir: null
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "shape").mkdir()
    (tmp_path / "program.yaml").write_text(CONFIG)
    (tmp_path / "shape" / "square.yaml").write_text("side: 1\n")
    (tmp_path / "shape" / "circle.yaml").write_text("radius: 2.5\nside: 0\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_reach_the_command_and_hydra_writes_nothing(program: Path) -> None:
    before = set(program.parent.rglob("*"))
    result = run(program, "action=go", "size=4", "shape=circle")
    assert (result.returncode, result.stdout, result.stderr) == (0, "size 4 0 go 4 False\n", "")
    assert set(program.parent.rglob("*")) == before


def test_user_error_is_one_paragraph_and_status_2(program: Path) -> None:
    result = run(program, "action=refuse")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: the first line and the second\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: action is not set; it is what to do. Give action=VALUE.\n"),
        (["action=go", "size=true"], "error: size is true; it must be an integer.\n"),
        (["action=go", "size=big"], "error: size is 'big'; it must be an integer.\n"),
        (["action=go", "colour=red"], "error: There is no setting colour. --help lists the settings.\n"),
        (["action=go", "+siz=4"], "error: There is no setting siz. Did you mean size? --help lists the settings.\n"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(arguments: list[str], message: str, program: Path) -> None:
    result = run(program, *arguments)
    assert (result.returncode, result.stderr) == (2, message)


def test_text_is_taken_as_written_and_conf_may_refer_to_it(program: Path) -> None:
    result = run(program, "action=arguments", "nested.text=${size} (a, b=c): 'x' ${oc.env:HOME}")
    assert result.stdout == "size 3 1 ${size} (a, b=c): 'x' ${oc.env:HOME} False\nTrue\n"
    result = run(program, "action=${size}")
    assert result.stdout == "size 3 1 ${size} 3 False\n"


def test_a_reference_in_conf_that_leads_nowhere_is_one_line(program: Path) -> None:
    (program.parent / "program.yaml").write_text(CONFIG.replace("${size}", "${height}"))
    result = run(program, "action=go")
    assert result.returncode == 2
    assert "height" in result.stderr
    assert result.stderr.count("\n") == 1


def test_hydra_runs_several_jobs(program: Path) -> None:
    result = run(program, "--multirun", "action=go", "size=1,2", "nested.text='${x}'")
    assert (result.returncode, result.stdout) == (0, "size 1 1 ${x} False\nsize 2 1 ${x} False\n")


def test_a_refusal_needs_neither_hydra_nor_torch(program: Path) -> None:
    """Importing them takes seconds."""
    for argument in ("--help", "size=x", "colour=red"):
        code = (
            f"import runpy, sys; sys.argv = ['program.py', {argument!r}]\n"
            f"try: runpy.run_path({str(program)!r})\n"
            "except SystemExit: pass\n"
            "print(sorted({'hydra', 'omegaconf', 'torch', 'yaml', 'numpy', 'dataclasses'} & sys.modules.keys()))"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert result.stdout.splitlines()[-1] == "[]"


def test_interrupt_ends_with_130_and_no_traceback(program: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(program), "action=wait"],
        cwd=program.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_reader_that_leaves_is_no_error(program: Path) -> None:
    result = subprocess.run(
        f"{sys.executable} {program} action=talk | head -n 1",
        shell=True,
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("x" * 100 + "\n", "")


def test_a_reader_that_closes_the_pipe_ends_help_quietly(program: Path) -> None:
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))} --help | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.returncode in (0, 141)  # what it wrote before the reader had gone is not an error


def test_help_explains_each_setting_once(program: Path) -> None:
    result = run(program, "--help")
    assert result.returncode == 0
    assert result.stdout == (
        "Does one thing, and does it well.\n\n"
        "usage: python runners/program.py [SETTING=VALUE ...]\n\n"
        "Settings, with their defaults:\n\n"
        "  shape=square  (square | circle)\n"
        "      Which shape.\n"
        "      square: Four sides.\n"
        "      circle: No side.\n\n"
        "  shape.side=1\n"
        "      Length of a side.\n\n"
        "  shape.radius=0.0\n"
        "      Half the width.\n\n"
        "  action=null\n"
        "      What to do, in one word.\n\n"
        "  size=3\n"
        "      How large.\n\n"
        "  nested:\n"
        "      Some more.\n\n"
        "  nested.inner=[1, 2]\n"
        "      Inner one.\n\n"
        "  nested.text=null\n"
        "      A text.\n\n"
        "  steps:\n"
        "      All steps.\n\n"
        "  steps.one.enabled=true\n"
        "      The first.\n\n"
        "  steps.two.enabled=false\n"
        "  steps.two.width=4\n"
        "      The second.\n\n"
        "Hydra's own options (--cfg job, --multirun, ...): --hydra-help\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_setting_and_what_it_does(command: str) -> None:
    settings = settings_of(command)
    text = help_text(settings, command)
    assert len(text.split("\n\n")[0]) > 20
    heads = [line.strip().partition("=")[0].rstrip(":") for line in text.splitlines() if line.startswith("  ")]
    assert [name for name in names(settings) if name not in heads] == []
    joined = " ".join(text.split())
    assert [text for text in helps(settings) if not text or " ".join(text.split()) not in joined] == []


def helps(settings: type[Settings]) -> list[str]:
    found = []
    for _, declared in members(settings):
        if isinstance(declared, Group):
            found += [declared.help or declared.settings.__doc__ or "", *helps(declared.settings)]
            found += [option.help for option in declared.settings.options.values()]
        elif isinstance(declared, Switches):
            found += [switch.help for switch in declared.things.values()]
        else:
            found.append(declared.help)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_keeps_hydra_from_writing_files(command: str) -> None:
    raw = yaml.safe_load(Path(CONF, f"{command}.yaml").read_text())
    assert raw["hydra"] == {"run": {"dir": "."}, "output_subdir": None}
    assert {"override hydra/job_logging": "disabled"} in raw["defaults"]
    assert {"override hydra/hydra_logging": "disabled"} in raw["defaults"]


@pytest.mark.parametrize(("reason", "status"), [("EACCES", 2), ("ENOSPC", 2), ("EROFS", 2), ("EEXIST", 1)])
def test_a_place_that_cannot_be_used_is_named_in_one_line(reason: str, status: int, program: Path) -> None:
    lines = ["import errno, os", f"def run(s): raise OSError(errno.{reason}, os.strerror(errno.{reason}), '/a/place')"]
    text = program.read_text()
    program.write_text(
        text[: text.rindex("run_command(")] + "\n".join(lines) + "\n" + text[text.rindex("run_command(") :]
    )
    result = run(program, "action=go")
    assert result.returncode == status
    if status == 2:
        assert result.stderr == f"error: /a/place cannot be used: {os.strerror(getattr(errno, reason))}\n"
