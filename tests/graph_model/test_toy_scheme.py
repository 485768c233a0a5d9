"""docs/recipes.md's section about quantization schemes, walked: w6a16 is added to a copy of the sources and runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy_scheme.py")
NAME = "w6a16"
MOST_FILES = 8

# In the copy, a model of one layer: shared by ranks, passes checked, bytes known, written, and run from both forms.
WALK = """
import sys
from pathlib import Path

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.checkpoint import expected_tensors, open_checkpoint, save_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.footprint import rank_weights
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.check import BUCKETS, check_passes
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import PASSES, build_passes
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.llm.random_weights import random_weights
from graph_gemma.runners.engine.sampling_params import SamplingParams

import torch

config = GemmaConfig(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, dtype="float32",
)
read, how = random_weights(config), Quantization("w6a16", select_linears(config, []))
source, target = Path(sys.argv[1]) / "source", Path(sys.argv[1]) / "quantized"
save_checkpoint(source, {name: read(name) for name in expected_tensors(config)}, config.to_json())

def passes(shard=None):
    return build_passes({name: {} for name in PASSES}, shard)

for rank in range(2):
    graph = capture(config, Bucket("decode", 1, 1, 2), KVCacheConfig(4, 16), torch.float32, how)
    run_passes(graph, passes(Shard(rank, 2)))
    parts = {part for e in graph.weight_plan.values() for part in getattr(e, "parts", [e]) if "int6" in str(part)}
    declared = rank_weights(config, torch.float32, how, Shard(rank, 2))
    assert parts == {each for each in declared if "int6" in str(each)} and len(parts) == 16, parts

checked = check_passes(config, torch.float32, passes(), read, BUCKETS[2:3], how)
assert "insert_quantization" in {each.graph_pass.name for each in checked}

reports = quantize_checkpoint(source, target, QuantizerOptions(how), []).linears
assert len(reports) == 8 and all(25 < report.sqnr_after < 40 for report in reports), reports
with open_checkpoint(target, read_config(target)) as opened:
    assert opened.quantization == Quantization("w6a16", how.linears, stored=True)

answers = []
for settings in ([f"model.path={source}", "quant=w6a16"], [f"model.path={target}"]):
    with LLM([*settings, "backend=eager", f"cache_dir={target}.cache"]) as llm:
        answers.append(llm.generate([[2, 7, 9]], SamplingParams(max_new_tokens=4))[0].token_ids)
assert answers[0] == answers[1] and len(answers[0]) == 4, answers
"""


def recipe() -> list[str]:
    """The files that the section lists, with the scheme's name in them."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = re.search(r"\n## A quantization scheme\n(.*?)(\n## |\Z)", text, re.S)
    assert section is not None
    return [path.replace("NAME", NAME) for path in re.findall(r"^\d+\. `([^`]+)`", section[1], re.M)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the toy scheme added as the recipe says."""
    root = tmp_path_factory.mktemp("copy") / "graph_gemma"
    root.mkdir()
    shutil.copy(ROOT / "__init__.py", root)
    for package in ("graph_model", "passes", "runners", "conf"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = recipe()
    shutil.copyfile(TOY, root / files[0])
    names = root / files[1]
    text = names.read_text(encoding="utf-8")
    assert text.count('"w8a16")') == 1
    names.write_text(text.replace('"w8a16")', f'"w8a16", "{NAME}")'), encoding="utf-8")
    declared = root / files[2]
    text = declared.read_text(encoding="utf-8")
    option = f'        "{NAME}": Option("A toy.", {{"scheme": "{NAME}"}}),\n'
    assert text.count('        "kv8": Option(') == 1
    declared.write_text(text.replace('        "kv8": Option(', f'{option}        "kv8": Option('), encoding="utf-8")
    (root / files[3]).write_text(f"scheme: {NAME}\n", encoding="utf-8")
    return root


def test_the_recipe_is_few_files_that_exist_but_for_the_new_ones() -> None:
    files = recipe()
    assert len(files) <= MOST_FILES
    assert [path for path in files if NAME not in path and not (ROOT / path).exists()] == []


def test_a_toy_scheme_is_loaded_shared_checked_written_and_read(copy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WALK, str(tmp_path)]
    result = subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
