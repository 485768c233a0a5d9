"""Commands that use transformers' models work where torch_npu is installed and CANN is not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, import_path
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS
from support.tokenizers import make_tokenizer

RUNNERS = ROOT / "runners"
CONFIG = TINY_CONFIGS["untied_head"]
needs_hflm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lm_eval", "accelerate")),
    reason="the extra evaluate is missing",
)
YES_NO = """
task: yes_no
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_target: 0
doc_to_choice: ["no", "yes"]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(directory, CONFIG)
    make_tokenizer(directory, size=CONFIG.vocab_size)
    return directory


LOAD = """
import sys
from graph_gemma.runners.backends.transformers_import import import_transformers
model = import_transformers().AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "torch_npu" not in sys.modules
print(type(model).__name__)
"""


def run(tmp_path: Path, *arguments: str) -> str:
    """What a command (python ARGUMENTS) prints where `import torch_npu` fails as it does without CANN."""
    (tmp_path / "packages/torch_npu").mkdir(parents=True)
    (tmp_path / "packages/torch_npu/__init__.py").write_text(
        "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"
    )
    path = os.pathsep.join([str(tmp_path / "packages"), import_path(ROOT, os.environ.get("PYTHONPATH", ""))])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "data")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_are_loaded(checkpoint: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "-c", LOAD, str(checkpoint)) == "GemmaForCausalLM\n"


@pytest.mark.slow
def test_compare(checkpoint: Path, tmp_path: Path) -> None:
    settings = [f"model.path={checkpoint}", "prompt_token_ids=[[2,5,7]]", "max_new_tokens=3", "ignore_eos=true"]
    printed = run(
        tmp_path, str(RUNNERS / "compare.py"), "b=transformers", "backend=eager", f"cache_dir={tmp_path}", *settings
    )
    assert "rule:             holds" in printed


@pytest.mark.slow
def test_benchmark(checkpoint: Path, tmp_path: Path) -> None:
    settings = [f"model.path={checkpoint}", "backend=eager", "lengths=[[4,2]]", "repeats=1", f"cache_dir={tmp_path}"]
    assert "transformers (float32), batch 1, 4 + 2:" in run(
        tmp_path, str(RUNNERS / "benchmark.py"), "peers=[transformers]", *settings
    )


@pytest.mark.slow
@needs_hflm
def test_the_harness(checkpoint: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"text": "is it so?"}) + "\n")
    (tmp_path / "yes_no.yaml").write_text(YES_NO.replace("ITEMS", str(items)))
    arguments = ["--model_args", f"pretrained={checkpoint}", "--device", "cpu", "--tasks", "yes_no"]
    printed = run(
        tmp_path, str(RUNNERS / "lm_eval_cli.py"), "run", "--model", "hf", *arguments, "--include_path", str(tmp_path)
    )
    assert "|yes_no|" in printed
