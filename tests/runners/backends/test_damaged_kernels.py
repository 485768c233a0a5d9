"""A start from a cache whose kept files are damaged: everything is made again, and the answer is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT, import_path
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.runners.backends.inductor import cpp_compiler

SETTINGS = ["backend=inductor", "prompt_token_ids=[[5,6,7]]", "max_new_tokens=1", "max_seq_len=32", "ignore_eos=true"]


def answer(checkpoint: Path, cache: Path, output: Path) -> list[int]:
    places = [f"model.path={checkpoint}", f"cache_dir={cache}", f"output_file={output}", "overwrite=true"]
    command = [sys.executable, str(ROOT / "runners" / "infer.py"), *places, *SETTINGS]
    temporary = cache.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": import_path(), "TMPDIR": str(temporary)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    # Inductor's own places there, which others can foresee, hold precompiled headers by default.
    assert not [path for path in temporary.rglob("*") if path.is_file()], "what is executed lies in the cache alone"
    found: list[int] = json.loads(output.read_text())["token_ids"]
    return found


@pytest.mark.slow
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_truncated_kernels_are_made_again(tmp_path: Path) -> None:
    config = replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=1)
    make_checkpoint(tmp_path / "model", config, dtype=torch.float32)
    cache, output = tmp_path / "cache", tmp_path / "out.jsonl"
    first = answer(tmp_path / "model", cache, output)
    for path in (cache / "files").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert answer(tmp_path / "model", cache, output) == first
    assert not list(cache.glob(".*")), "no process has left its workspace"
