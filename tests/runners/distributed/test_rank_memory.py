"""What a rank reads from disk and holds while it loads falls with the number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import write_random_checkpoint
from support.configs import TINY_CONFIGS
from support.modelslim import quantized_tensors, write_checkpoint

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.footprint import num_parameters
from graph_gemma.graph_model.quantization.linears import linear_paths
from graph_gemma.graph_model.tensor_parallel import Shard

# Columns of a rank are whole pages: 32 kB in a row of the down projection, 4 kB in one of the output projection.
CONFIG = GemmaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=32768,
    num_hidden_layers=1,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=512,
    dtype="float32",
)
WORLD_SIZES = (4, 2, 1)
NUM_WHOLE = 3  # norms

LOAD = """
import json, os, sys
from contextlib import ExitStack
from pathlib import Path
import torch
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.graph_model.bucket import Bucket, BucketTable
from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.runners.compile import CompiledModel, Recipe
from graph_gemma.runners.compile.step import prepare_step
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.llm.load import _one_at_a_time

def field(path, name):
    return int(next(l for l in Path(path).read_text().splitlines() if l.startswith(name)).split()[1])

directory, scheme, place = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = read_config(directory)
how = None if scheme == "none" else Quantization(scheme, linear_paths(config)[:-1], stored=scheme == "w8a8")
for world_size in map(int, sys.argv[4:]):
    shard = Shard(0 if place == "first" else world_size - 1, world_size)
    passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
    backend, cache_config = EagerBackend(torch.device("cpu")), KVCacheConfig(4, 16)
    recipe = Recipe(config, torch.float32, cache_config, tuple(passes), backend, quantization=how, shard=shard)
    with open_checkpoint(directory, config) as checkpoint:
        model = CompiledModel(recipe, BucketTable((1,), (1,), (16,), (1,), 16), 16, _one_at_a_time(checkpoint))
        step = prepare_step(recipe, Bucket("decode", 1, 1, 1))
        descriptor = os.open(next(directory.glob("*.safetensors")), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        Path("/proc/self/clear_refs").write_text("5")
        memory, disk = field("/proc/self/status", "VmRSS"), field("/proc/self/io", "read_bytes")
        model._load_weights([step])
        peak, read = field("/proc/self/status", "VmHWM") - memory, field("/proc/self/io", "read_bytes") - disk
        print(json.dumps([peak * 1024, read, model.weight_bytes]))
    del model
"""


def read_ahead(directory: Path) -> int:
    """Bytes that the system reads ahead of a sequential reader of files there."""
    device = os.stat(directory).st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(path.read_text()) * 1024


def load(directory: Path, scheme: str, place: str) -> list[tuple[int, int, int]]:
    """Peak memory, bytes read and bytes held by the first or last rank, by world size."""
    with next(directory.glob("*.safetensors")).open("rb+") as file:
        os.fsync(file.fileno())  # only written pages can be dropped from memory
    command = [sys.executable, "-c", LOAD, str(directory), scheme, place, *map(str, WORLD_SIZES)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert run.returncode == 0, run.stderr
    return [(peak, read, held) for peak, read, held in map(json.loads, run.stdout.splitlines())]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("scheme", "place"), [("w8a8", "last"), ("w8a8", "first"), ("w8a8_dynamic", "last")])
def test_a_quantized_models_memory_falls_and_reads_whole_rows(tmp_path: Path, scheme: str, place: str) -> None:
    """w8a8 is read from a quantized checkpoint, of which rank 0 reads row-parallel layers whole, for their bias;
    w8a8_dynamic is made at load, where scales of row-parallel layers are those of whole rows."""
    directory = tmp_path / "model"
    write_random_checkpoint(directory, CONFIG)
    if scheme == "w8a8":
        floats = load_file(directory / "model.safetensors")
        made = quantized_tensors(floats, linear_paths(CONFIG)[:-1], scheme, torch.float32)
        directory = tmp_path / "quantized"
        write_checkpoint(directory, CONFIG.to_json(), made, scheme)
    element = 1 if scheme == "w8a8" else 4  # of a projection in the file
    columns, kv = CONFIG.num_attention_heads * CONFIG.head_dim, CONFIG.num_key_value_heads * CONFIG.head_dim
    column_parallel = (columns + 2 * kv + 2 * CONFIG.intermediate_size) * CONFIG.hidden_size
    row_parallel = (columns + CONFIG.intermediate_size) * CONFIG.hidden_size
    table = 4 * CONFIG.vocab_size * CONFIG.hidden_size
    for world_size, (peak, read, held) in zip(WORLD_SIZES, load(directory, scheme, place), strict=True):
        whole_rows = world_size > 1 and (scheme == "w8a8_dynamic" or place == "first")
        ideal_held = (column_parallel + row_parallel + table) / world_size
        read_of_rows = row_parallel if whole_rows else row_parallel / world_size
        ideal_read = (element * column_parallel + table) / world_size + element * read_of_rows
        print(f"{scheme}, {place} of {world_size}: {held / ideal_held:.3f} held, {peak / ideal_held:.3f} at the peak,")
        print(f"{read / ideal_read:.3f} of the ideal reads")
        assert held <= 1.02 * ideal_held + 1e6
        block = 4 * element * 1024 * CONFIG.intermediate_size if whole_rows else 0
        largest = 4 * CONFIG.intermediate_size * CONFIG.hidden_size / world_size
        assert peak <= ideal_held + max(largest, block) + 64e6
        assert read <= 1.1 * ideal_read + 8 * read_ahead(tmp_path) + 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_disk_fall_with_the_number_of_ranks(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, CONFIG)
    for world_size, (peak, read, held) in zip(WORLD_SIZES, load(tmp_path, "none", "last"), strict=True):
        ideal = 4 * num_parameters(CONFIG, Shard(0, world_size))
        print(f"{world_size} ranks: {peak / ideal:.3f} of the ideal memory, {read / ideal:.3f} of the ideal reads")
        assert held <= 1.02 * ideal
        largest = 4 * CONFIG.intermediate_size * CONFIG.hidden_size / world_size  # mapped while it is copied
        assert peak <= ideal + largest + 16e6
        # A row's part may begin and end within a page, and the system reads whole pages; and ahead of whole tensors.
        assert 0.9 * ideal <= read <= 1.1 * ideal + NUM_WHOLE * read_ahead(tmp_path)


def test_the_share_of_a_rank_is_counted_as_it_is_planned() -> None:
    config = TINY_CONFIGS["one_kv_head"]
    hidden, layers, kv = config.hidden_size, config.num_hidden_layers, config.head_dim * config.hidden_size
    replicated = (2 * layers + 1) * hidden + layers * 2 * kv
    assert 4 * (num_parameters(config, Shard(0, 4)) - replicated) == num_parameters(config) - replicated
