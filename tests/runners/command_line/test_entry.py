"""What every command shares: settings, exit codes, messages and --help."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT

import pytest
import yaml

from runners.command_line.help_text import help_text, settings_of

CONF = Path(__file__).resolve().parents[3] / "conf"

PROGRAM = """
import sys, time
from pathlib import Path
from graph_model.errors import UserError
from runners.command_line.entry import main, require

def run(settings):
    action = require(settings, "action", str, "what to do")
    if action == "refuse":
        raise UserError("the first line\\nand the second")
    if action == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if action == "talk":
        for _ in range(100_000):
            print("x" * 100)
    require(settings, "size", int, "a number")
    print("size", settings.size, "evaluate" in sys.modules)

main(run, "program", Path(__file__).parent)
"""

CONFIG = """\
# Does one thing, and
# does it well.

defaults:
  # Which shape.
  - shape: square
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled

# What to do,
# in one word.
action: null
size: 3  # how large
# Some more.
nested:
  # Inner one.
  inner: [1, 2]

hydra:
  run:
    dir: .
  output_subdir: null
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "shape").mkdir()
    (tmp_path / "program.yaml").write_text(CONFIG)
    (tmp_path / "shape" / "square.yaml").write_text("# Four sides.\n\n# Length of a side.\nside: 1\n")
    (tmp_path / "shape" / "circle.yaml").write_text("# No side.\n\n# Half the width.\nradius: 2.5\nside: 0\n")
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
    assert (result.returncode, result.stdout, result.stderr) == (0, "size 4 False\n", "")
    assert set(program.parent.rglob("*")) == before


def test_user_error_is_one_paragraph_and_status_2(program: Path) -> None:
    result = run(program, "action=refuse")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: the first line and the second\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: action is not set; it is what to do. Give action=VALUE.\n"),
        (["action=go", "size=true"], "error: size is True; it must be a number.\n"),
        (["action=go", "size=big"], "error: size is 'big'; it must be a number.\n"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(arguments: list[str], message: str, program: Path) -> None:
    result = run(program, *arguments)
    assert (result.returncode, result.stderr) == (2, message)


def test_unknown_setting_gets_hydras_message(program: Path) -> None:
    result = run(program, "colour=red")
    assert result.returncode != 0
    assert "Could not override 'colour'" in result.stderr
    assert "Traceback" not in result.stderr


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


def test_help_explains_each_setting_once(program: Path) -> None:
    start = time.perf_counter()
    result = run(program, "--help")
    assert time.perf_counter() - start < 5, "help must not import torch"
    assert result.returncode == 0
    assert result.stdout == (
        "Does one thing, and does it well.\n\n"
        "usage: python runners/program.py [SETTING=VALUE ...]\n\n"
        "Settings, with their defaults:\n\n"
        "  shape=square  (circle | square)\n"
        "      Which shape.\n"
        "      circle: No side.\n"
        "      square: Four sides.\n\n"
        "  shape.side=1\n"
        "      Length of a side.\n\n"
        "  shape.radius=2.5\n"
        "      Half the width.\n\n"
        "  action=null\n"
        "      What to do, in one word.\n\n"
        "  size=3\n"
        "      how large\n\n"
        "  nested:\n"
        "      Some more.\n\n"
        "  nested.inner=[1, 2]\n"
        "      Inner one.\n\n"
        "Hydra's own options (--cfg job, --multirun, ...): --hydra-help\n"
    )


def test_help_follows_packages_and_nested_groups(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "main.yaml").write_text("defaults:\n  - a: one\n  - extra\n  - a/b@other: two\n\ntop: 1\n")
    (tmp_path / "extra.yaml").write_text("more: yes\n")
    (tmp_path / "a" / "one.yaml").write_text("# @package _global_\ndefaults:\n  - b: two\n\nx: {k: 1}\n")
    (tmp_path / "a" / "b" / "two.yaml").write_text("y: 'text'\n")

    names = [setting.name for setting in settings_of(tmp_path, tmp_path / "main.yaml")]

    assert names == ["a", "a/b", "b.y", "x.k", "more", "other.y", "top"]


COMMANDS = [path.stem for path in CONF.glob("*.yaml")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_every_command_is_explained(command: str) -> None:
    unexplained = [s.name for s in settings_of(CONF, CONF / f"{command}.yaml") if not s.comment.strip()]
    assert unexplained == []
    assert len(help_text(CONF, command).split("\n\n")[0]) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_keeps_hydra_from_writing_files(command: str) -> None:
    raw = yaml.safe_load((CONF / f"{command}.yaml").read_text())
    assert raw["hydra"] == {"run": {"dir": "."}, "output_subdir": None}
    assert {"override hydra/job_logging": "disabled"} in raw["defaults"]
    assert {"override hydra/hydra_logging": "disabled"} in raw["defaults"]


@pytest.mark.parametrize(("reason", "status"), [("EACCES", 2), ("ENOSPC", 2), ("EROFS", 2), ("EEXIST", 1)])
def test_a_place_that_cannot_be_used_is_named_in_one_line(reason: str, status: int, program: Path) -> None:
    lines = ["import errno, os", f"def run(s): raise OSError(errno.{reason}, os.strerror(errno.{reason}), '/a/place')"]
    text = program.read_text()
    program.write_text(text[: text.rindex("main(run")] + "\n".join(lines) + "\n" + text[text.rindex("main(run") :])
    result = run(program)
    assert result.returncode == status
    if status == 2:
        assert result.stderr == f"error: /a/place cannot be used: {os.strerror(getattr(errno, reason))}\n"
