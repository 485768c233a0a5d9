"""Rank graphs of full-size layers, lowered for a chip: run as a script, once per SoC.

python rank_graph_cases.py SOC CACHE_DIR CASES.json prints a JSON line per case [model, world_size, dtype, scheme,
phase, layers]: what `measure_rank` found, or the error. A process of its own, because torch_npu keeps the chip's name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from graph_model.bucket import Bucket
from graph_model.chips.registry import find_soc
from graph_model.graph import KVCacheConfig
from graph_model.quantization.linears import Quantization, select_linears
from graph_model.tensor_parallel import Shard
from passes.pipeline import DEFAULT_PASSES, build_passes
from runners.backends.ascend import standin
from runners.backends.ascend.rank_graph import measure_rank
from runners.backends.ascend.register import register_kernels
from runners.backends.torchair import AscendOptions, kernel_passes
from runners.settings.model_settings import NAMED_CONFIGS

BUCKETS = {
    "decode": Bucket("decode", 4, 1, 8),
    "sample": Bucket("decode", 4, 1, 8, "sample", 2),
    "prefill": Bucket("prefill", 1, 128, 0),
    "extend": Bucket("extend", 1, 128, 8),
    "score": Bucket("extend", 2, 64, 8, "score", scored=16),
}
KEPT = ["down_proj", "lm_head"]  # in floating point where others are quantized


def main() -> None:
    name, cache_dir, cases = sys.argv[1:]
    torch.set_num_threads(1)
    soc = find_soc(name)
    standin.load(soc, Path(cache_dir))
    register_kernels()
    for model, world_size, dtype, scheme, phase, layers in json.loads(cases):
        shard = Shard(world_size - 1, world_size)
        passes = build_passes({cls.name: {} for cls in DEFAULT_PASSES}, shard)
        passes += kernel_passes(AscendOptions(soc, "exact"))
        config = replace(NAMED_CONFIGS[model], num_hidden_layers=layers)
        quantization = None
        if scheme != "none":
            quantization = Quantization(scheme, select_linears(config, KEPT), stored=scheme == "w8a8")
        step_of = (BUCKETS[phase], KVCacheConfig(64, 64), tuple(passes), shard, quantization)
        try:
            step = measure_rank(config, soc, getattr(torch, dtype), *step_of)
            print(json.dumps(asdict(step)), flush=True)
        except Exception as error:
            print(json.dumps({"error": repr(error)}), flush=True)


if __name__ == "__main__":
    main()
