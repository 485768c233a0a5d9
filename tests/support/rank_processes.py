"""Runs of infer.py on several ranks: starting them, finding their processes, ending one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.checkout import ROOT, import_path

INFER = ROOT / "runners" / "infer.py"


def arguments(checkpoint: Path, directory: Path, prompts: list[list[int]], *overrides: str) -> list[str]:
    """infer.py on random weights: quick, deterministic, to the last token."""
    return [
        str(INFER),
        f"model.path={checkpoint}",
        f"prompt_token_ids={json.dumps(prompts)}",
        "backend=eager",
        "ignore_eos=true",
        "ranks.master_port=null",
        f"output_file={directory / 'out.jsonl'}",
        f"cache_dir={directory / 'cache'}",
        *overrides,
    ]


def start(command: list[str], own_group: bool = False) -> subprocess.Popen[str]:
    """own_group: with a process group of its own, as a shell gives a command."""
    environment = {
        **os.environ,
        "PYTHONPATH": import_path(ROOT, ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=os.setpgrp if own_group else None,
    )


def finished(directory: Path) -> list[dict[str, object]]:
    """The requests in output_file, whose lines are all whole."""
    path = directory / "out.jsonl"
    text = path.read_text() if path.exists() else ""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def ranks_of(launcher: int, world_size: int, timeout: float = 120) -> dict[int, int]:
    """Process id of every rank, once all have been started."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
                if int(parent) == launcher:
                    variables = dict(
                        v.split("=", 1) for v in path.joinpath("environ").read_text().split("\0") if "=" in v
                    )
                    found[int(variables["RANK"])] = int(path.name)
            except (OSError, KeyError):
                continue
        if len(found) == world_size:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{launcher} has not started {world_size} ranks")


def wait_for(condition: object, process: subprocess.Popen[str], timeout: float = 240) -> None:
    """Wait until `condition()` holds, while the process runs."""
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def end(process: subprocess.Popen[str], pids: dict[int, int], number: signal.Signals, victim: int) -> tuple[str, float]:
    """Send a signal to process `victim`, or to the process group -victim; what the launcher then printed as errors, and
    how long all took to end."""
    started = time.monotonic()
    os.kill(victim, number)
    _, errors = process.communicate(timeout=60)
    wait_until_ended(pids)
    return errors, time.monotonic() - started


def wait_until_ended(pids: dict[int, int]) -> None:
    started = time.monotonic()
    while any(map(is_alive, pids.values())):
        assert time.monotonic() - started < 20, "a rank is still running"
        time.sleep(0.05)
