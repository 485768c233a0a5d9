"""Golden dumps: the text of the graphs of a one-layer model. `pytest tests/passes --update-golden` rewrites them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.data import DUMPS

ROOT = Path(__file__).parents[2]

# Every dump of every bucket, in a process of its own.
WRITE = """
import sys
from pathlib import Path
import torch
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes

torch.set_num_threads(1)
config = GemmaConfig(
    vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
)
buckets = [
    Bucket("prefill", batch=2, chunk=8, max_blocks_per_seq=0),
    Bucket("extend", batch=2, chunk=8, max_blocks_per_seq=2),
    Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2),
    Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2, selection="sample", logprobs=3),
]
cache_config, folder = KVCacheConfig(num_blocks=8, block_size=16), Path(sys.argv[1])
for bucket in buckets:
    graph = capture(config, bucket, cache_config, torch.bfloat16)
    run_passes(graph, [cls() for cls in DEFAULT_PASSES], dump_dir=folder)
int8 = Quantization("w8a8", select_linears(config, ["down_proj", "lm_head"]), stored=True, kv8=True)
quantized = capture(config, buckets[2], cache_config, torch.bfloat16, int8)
run_passes(quantized, [cls() for cls in DEFAULT_PASSES], dump_dir=folder / "w8a8-kv8")
sharding = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, Shard(1, 2))
run_passes(capture(config, buckets[2], cache_config, torch.bfloat16), sharding, dump_dir=folder / "rank1of2")
"""


def write_dumps(directory: Path, hash_seed: str) -> dict[str, str]:
    """All dumps, by variant, bucket and file name."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", WRITE, str(directory)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return {str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*.txt"))}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_dumps(tmp_path_factory.mktemp("dumps"), hash_seed="1")


def golden_texts(dumps: dict[str, str]) -> dict[str, str]:
    """The dumps that are kept: after every pass for the extend bucket, after the last for the others."""
    buckets = {name.rpartition("/")[0] for name in dumps}
    last = {bucket: max(name for name in dumps if name.startswith(bucket + "/")) for bucket in buckets}
    each = [name for name in dumps if name.startswith("extend") and not name.endswith("00_capture.txt")]
    kept = [*each, *(name for name in last.values() if name not in each)]
    return {name.replace("/", "."): dumps[name] for name in kept}


def test_dumps_equal_the_golden_ones(dumps: dict[str, str], request: pytest.FixtureRequest) -> None:
    texts = golden_texts(dumps)
    if request.config.getoption("--update-golden"):
        DUMPS.mkdir(exist_ok=True)
        for path in DUMPS.glob("*.txt"):
            path.unlink()
        for name, text in texts.items():
            (DUMPS / name).write_text(text, encoding="utf-8")
    golden = {path.name: path.read_text(encoding="utf-8") for path in sorted(DUMPS.glob("*.txt"))}
    assert sorted(texts) == sorted(golden)
    for name, text in texts.items():
        assert text == golden[name], f"{name} changed; review it after pytest tests/passes --update-golden"


def test_dumps_are_equal_from_run_to_run(dumps: dict[str, str], tmp_path: Path) -> None:
    assert write_dumps(tmp_path, hash_seed="12345") == dumps


def test_every_node_of_a_dump_is_defined_before_it_is_used(dumps: dict[str, str]) -> None:
    for name, text in dumps.items():
        defined: set[str] = set()
        for line in text.splitlines():
            if not line.startswith("    "):
                continue
            target, _, call = line.strip().partition(" = ")
            inside = call[call.find("(") :] if "(" in call else call.partition("[")[0]
            names = {word.strip("()[],") for word in inside.split()}
            assert not {w for w in names if w.startswith(("linear", "mul", "rms_norm", "rotary"))} - defined, (
                name,
                line,
            )
            defined.add(target.partition(":")[0])
