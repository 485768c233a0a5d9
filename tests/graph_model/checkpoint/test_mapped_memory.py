"""Reading a checkpoint maps its files; it does not copy them into memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graph_gemma.graph_model.checkpoint import expected_tensors, save_checkpoint
from graph_gemma.graph_model.config import GemmaConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEASURE = """
import json, re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.config_file import read_config

def mb(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

directory = Path(sys.argv[1])
torch.ones(1).sum()
base = {"anonymous": mb("RssAnon"), "resident": mb("VmRSS")}
peak_before = mb("VmHWM")
checkpoint = open_checkpoint(directory, read_config(directory))
held = [checkpoint.read(name) for name in checkpoint.names]
opened = mb("VmRSS") - base["resident"]
total = 0.0
for name, tensor in zip(checkpoint.names, held):
    total += float(tensor.view(torch.int16).amax())
used = {"anonymous": mb("RssAnon") - base["anonymous"], "resident": mb("VmRSS") - base["resident"]}
peak = mb("VmHWM")
for name in checkpoint.names:
    checkpoint.release(name)
released = mb("VmRSS") - base["resident"]
name = "model.layers.0.mlp.down_proj.weight"
part = float(checkpoint.read_slice(name, 0, 0, 64).float().sum())
sliced = mb("VmRSS") - base["resident"]
print(json.dumps(dict(
    opened=opened, used=used, peak=peak, baseline=base["resident"], peak_before=peak_before, released=released,
    sliced=sliced,
)))
"""


def measure(directory: Path) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory)], capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(run.stdout)


def make(directory: Path, layers: int) -> float:
    """A bfloat16 checkpoint of about 12 MB a layer and its size in MB."""
    config = GemmaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=1, head_dim=128,
    )  # fmt: skip
    shapes = expected_tensors(config)
    # Random bits: a file of zeros could be sparse.
    tensors = ((n, torch.randint(-30000, 30000, s, dtype=torch.int16).view(torch.bfloat16)) for n, s in shapes.items())
    save_checkpoint(directory, tensors, config.to_json())
    return (directory / "model.safetensors").stat().st_size / 2**20


def check(result: dict, size: float) -> None:
    assert result["opened"] < 0.1 * size, "opening and reading views touched the data"
    assert result["used"]["resident"] > 0.9 * size, "the measurement must see the pages that were used"
    assert result["used"]["anonymous"] < 0.1 * size, "a copy was made"
    assert result["released"] < 0.2 * size
    assert result["sliced"] - result["released"] < 2, "64 rows are 192 KB"


def test_tensors_are_mapped_and_released(tmp_path: Path) -> None:
    size = make(tmp_path / "c", layers=8)
    check(measure(tmp_path / "c"), size)


@pytest.mark.slow
def test_peak_memory_of_reading_a_large_checkpoint_is_its_size(tmp_path: Path) -> None:
    size = make(tmp_path / "c", layers=50)
    result = measure(tmp_path / "c")
    check(result, size)
    assert size > 500
    assert result["peak"] > result["peak_before"], "the peak must be that of reading, not of the imports"
    assert result["peak"] < result["baseline"] + 1.05 * size + 20
