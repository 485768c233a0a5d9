"""Ctrl-C leaves the finished requests in output_file, as whole lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS

INFER = Path(__file__).resolve().parents[2] / "runners" / "infer.py"


def test_an_interrupted_run_keeps_what_was_finished(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", TINY_CONFIGS["one_kv_head"])
    output = tmp_path / "out.jsonl"
    arguments = [
        f"model.path={tmp_path / 'checkpoint'}",
        f"prompt_token_ids={json.dumps([[5, i % 200] for i in range(400)])}",
        "backend=eager",
        "max_batch_size=2",
        "max_new_tokens=40",
        "ignore_eos=true",
        f"output_file={output}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    process = subprocess.Popen([sys.executable, str(INFER), *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    text = output.read_text()
    assert text.endswith("\n")
    finished = [json.loads(line) for line in text.splitlines()]
    assert 2 <= len(finished) < 400
    assert all(len(line["token_ids"]) == 40 and line["finish_reason"] == "length" for line in finished)
