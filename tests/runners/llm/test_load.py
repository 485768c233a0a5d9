"""Loading: memory, and the sizes that steps are compiled for."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import write_random_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.passes.framework.dump import dump
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import PASSES, build_passes
from graph_gemma.runners.compile import num_scratch_blocks
from graph_gemma.runners.llm.sizes import bucket_table

LARGE = GemmaConfig(
    vocab_size=36000,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=128,
    dtype="bfloat16",
)

LARGER = replace(LARGE, hidden_size=2048, intermediate_size=8192, num_hidden_layers=5)

LOAD = """
import sys
from pathlib import Path

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.settings.model_settings import resolve_settings
import graph_gemma.runners.compile, torch._dynamo, torch._inductor.compile_fx, torch._inductor.standalone_compile
from graph_gemma.graph_model.bucket import Bucket

resolved = resolve_settings(compose("infer", sys.argv[1:]))
baseline = status("VmRSS")
llm = LLM(resolved)
model = llm.loaded.model
model.warm_up([Bucket("prefill", 1, 64, 0), Bucket("decode", 1, 1, 4)])
(result,) = llm.generate([[5, 6, 7]])
print(baseline, status("VmHWM"), model.weight_bytes, model.report.compiled)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("backend", "dtype", "config"),
    [
        ("eager", "bfloat16", LARGE),
        pytest.param("eager", "float16", LARGE, marks=pytest.mark.slow),
        # So large that a second copy of the weights would not fit in what is allowed.
        pytest.param("inductor", "bfloat16", LARGER, marks=pytest.mark.slow),
    ],
    ids=["eager-bfloat16", "eager-float16", "inductor-bfloat16"],
)
def test_loading_and_running_peak_little_above_the_checkpoint(
    backend: str, dtype: str, config: GemmaConfig, tmp_path: Path
) -> None:
    """From the imports to an answer, weights of the checkpoint's dtype or of another: at most 1.15 S + 300 MB."""
    size = write_random_checkpoint(tmp_path, config)
    arguments = [f"model.path={tmp_path}", f"backend={backend}", f"dtype={dtype}", f"cache_dir={tmp_path / 'cache'}"]
    arguments += ["max_seq_len=256", "max_batch_size=1", "max_prefill_batch_size=1", "max_prefill_tokens=64"]
    result = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    baseline, peak, weight_bytes, compiled = map(int, result.stdout.split())
    print(f"{backend} {dtype}: {(peak - baseline) / 1e6:.0f} MB above the imports for {size / 1e6:.0f} MB of weights")
    assert size > 250e6
    assert weight_bytes == pytest.approx(size, rel=0.01)
    assert compiled == 2
    assert peak - baseline < 1.15 * size + 300e6


def sizes(**changes: int) -> Any:
    defaults = {"max_seq_len": 1024, "block_size": 64, "max_batch_size": 8, "max_prefill_batch_size": 4}
    return SimpleNamespace(**{**defaults, "max_prefill_tokens": 512, **changes})


def test_settings_decide_the_sizes() -> None:
    table = bucket_table(sizes(max_seq_len=1000))
    assert table.batch_sizes == (1, 4, 8)
    assert table.prefill_batch_sizes == (1, 4)
    assert table.chunk_lengths == (64, 128, 256, 512)
    assert table.table_widths == (4, 8, 16)
    assert table.fits(4, 128)
    assert not table.fits(4, 256)
    assert table.num_scratch_slots == 512


def test_decode_at_short_context_costs_the_same_at_any_length() -> None:
    """The step for context 100 is the same graph for 1k and 8k tokens: only the number of blocks differs.

    And nothing reads all blocks: their number is the caches' shape and no other value's.
    """
    graphs = []
    for max_seq_len in (1024, 8192):
        table = bucket_table(sizes(max_seq_len=max_seq_len))
        bucket = table.choose("decode", rows=1, blocks=-(-100 // 64))
        cache_config = KVCacheConfig(8 * max_seq_len // 64 + num_scratch_blocks(table, 64), 64)
        graph = capture(TINY_CONFIGS["one_kv_head"], bucket, cache_config, torch.float32)
        run_passes(graph, build_passes({name: {} for name in PASSES}))
        assert cache_config.num_blocks in (136, 1032)  # numbers that stand for nothing else in the graph
        lines = [re.sub(rf"\b{cache_config.num_blocks}\b", "NUM_BLOCKS", line) for line in dump(graph, "").splitlines()]
        named = [line for line in lines if "NUM_BLOCKS" in line]
        assert len(named) == len(graph.placeholders("cache")) == 2 * TINY_CONFIGS["one_kv_head"].num_hidden_layers
        assert all("_cache_" in line.split(":")[0] for line in named)
        graphs.append(lines)
    assert graphs[0] == graphs[1]
