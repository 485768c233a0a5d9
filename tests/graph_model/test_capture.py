"""Capture: what stands in the graph, whose weights it reads, and full-size models on fake tensors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import HEAD, SCHEMES, Quantization
from graph_gemma.graph_model.weights import CheckpointTensor, evaluate

aten = torch.ops.aten
KV_CACHE = KVCacheConfig(num_blocks=8, block_size=16)
PREFILL = Bucket("prefill", batch=2, chunk=8, max_blocks_per_seq=0)
DECODE = Bucket("decode", batch=3, chunk=1, max_blocks_per_seq=2)


def captured(name: str, bucket: Bucket = PREFILL, dtype: torch.dtype = torch.float32) -> ModelGraph:
    return capture(TINY_CONFIGS[name], bucket, KV_CACHE, dtype)


@pytest.mark.parametrize("bucket", [PREFILL, DECODE], ids=str)
@pytest.mark.parametrize("name", ["grouped_kv_heads", "untied_head"])
def test_attention_stays_one_node_per_layer(name: str, bucket: Bucket) -> None:
    graph = captured(name, bucket)
    attention = graph.calls(aten.scaled_dot_product_attention.default)
    layers = [f"model.layers.{index}.self_attn" for index in range(graph.config.num_hidden_layers)]
    assert [node.meta["layer"] for node in attention] == layers
    assert not graph.calls(aten.softmax.int, aten._softmax.default, aten.matmul.default)
    assert len(graph.calls(aten.linear.default)) == 7 * graph.config.num_hidden_layers + 1


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_weights_are_the_checkpoints_tensors_by_name(name: str) -> None:
    graph = captured(name)
    checkpoint = {key: tuple(p.shape) for key, p in make_model(graph.config).named_parameters()}  # a tied one once
    expressions = list(graph.weight_plan.values())
    assert all(isinstance(expression, CheckpointTensor) for expression in expressions)
    assert {e.name: e.shape for e in expressions if isinstance(e, CheckpointTensor)} == checkpoint


def test_a_tied_head_reads_the_embedding() -> None:
    tied, untied = captured("wide_heads"), captured("untied_head")
    names = {key: [e.name for e in g.weight_plan.values()] for key, g in (("tied", tied), ("untied", untied))}
    assert "lm_head.weight" not in names["tied"]
    assert "lm_head.weight" in names["untied"]
    (embedding,) = tied.calls(aten.embedding.default)
    head = tied.calls(aten.linear.default)[-1]
    assert embedding.args[0].meta["expression"] == head.args[1].meta["expression"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_tied_head_leaves_the_embedding_as_it_is(scheme: str) -> None:
    config = TINY_CONFIGS["wide_heads"]
    graph = capture(config, DECODE, KVCacheConfig(4, 16), torch.float32, Quantization(scheme, (HEAD,), stored=True))
    (embedding,) = graph.calls(aten.embedding.default)
    table = CheckpointTensor("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), torch.float32)
    assert embedding.args[0].meta["expression"] == table
    assert str(graph.calls(aten.linear.default)[-1].args[1].meta["expression"]) == "dequantized(lm_head)"


@pytest.mark.parametrize("bucket", [PREFILL, DECODE], ids=str)
def test_inputs_and_output_have_the_buckets_shape(bucket: Bucket) -> None:
    graph = captured("odd_vocabulary", bucket)
    inputs = {node.name: node.meta["val"] for node in graph.placeholders("input")}
    assert list(inputs) == ["input_ids", "positions"]
    assert all(value.shape == (bucket.batch, bucket.chunk) for value in inputs.values())
    assert all(value.dtype == torch.int64 for value in inputs.values())
    (logits,) = graph.outputs
    assert logits.meta["val"].shape == (bucket.batch, bucket.chunk, 251)
    assert not graph.placeholders("cache")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_and_logits_have_the_dtype_asked_for(dtype: torch.dtype) -> None:
    graph = captured("wide_heads", dtype=dtype)
    assert {e.dtype for e in graph.weight_plan.values()} == {dtype}
    assert graph.outputs[0].meta["val"].dtype == dtype
    assert torch.get_default_dtype() == torch.float32


def test_every_call_carries_its_module_and_a_fake_value() -> None:
    graph = captured("attention_bias")
    modules = {name for name, _ in family_of(graph.config).model().named_modules()}
    for node in graph.calls():
        assert node.meta["layer"] in modules
        assert set(node.meta) == {"val", "layer"}
    fakes = [node.meta["val"] for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert all(isinstance(fake, torch._subclasses.FakeTensor) for fake in fakes)
    assert {fake.fake_mode for fake in fakes} == {graph.fake_mode}


@pytest.mark.parametrize("name", ["rope_and_eps", "untied_head"])
@torch.no_grad()
def test_the_graph_computes_the_logits_of_transformers(name: str) -> None:
    graph = captured(name)
    reference = make_model(graph.config)
    read = dict(reference.named_parameters()).__getitem__
    plan = graph.weight_plan
    tensors = evaluate(plan.values(), read, torch.device("cpu"))
    ids = torch.randint(0, 256, (2, 8), generator=torch.Generator().manual_seed(0))

    (found,) = graph.module(*(tensors[e] for e in plan.values()), ids, torch.arange(8).expand(2, 8))

    expected = reference(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# Both phases of a full-size model: 465 and 715 captured calls; what the passes leave; peak memory beyond imports.
FULL_SIZE = """
import json, resource, sys
import torch
from graph_gemma.graph_model import ops
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B
from graph_gemma.graph_model.graph import KVCacheConfig
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


torch.set_num_threads(1)
imported = peak_mb()
config = {"2b": GEMMA_2B, "7b": GEMMA_7B}[sys.argv[1]]
found = {}
for bucket in (Bucket("prefill", 1, 512, 0), Bucket("decode", 16, 1, 128, "sample", 5)):
    graph = capture(config, bucket, KVCacheConfig(num_blocks=4096, block_size=64), torch.bfloat16)
    run_passes(graph, [cls() for cls in DEFAULT_PASSES])
    plan = graph.weight_plan
    found[bucket.phase] = {
        "linear": len(graph.calls(torch.ops.aten.linear.default)),
        "attention": len(graph.calls(ops.paged_attention)),
        "norms": len(graph.calls(ops.rms_norm, ops.add_rms_norm)),
        "rotary": len(graph.calls(ops.rotary)),
        "weight_bytes": sum(torch.Size(e.shape).numel() * e.dtype.itemsize for e in set(plan.values())),
        "cache_bytes": sum(n.meta["val"].nbytes for n in graph.placeholders("cache")),
    }
found["peak_mb"] = peak_mb() - imported
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(
    ("size", "layers", "kv_heads", "gigabytes"),
    [("2b", 18, 1, (5.0, 5.1)), pytest.param("7b", 28, 16, (17.0, 17.2), marks=pytest.mark.slow)],
)
def test_full_size_models_are_captured_without_weights(
    size: str, layers: int, kv_heads: int, gigabytes: tuple[float, float]
) -> None:
    """5 GB and 17 GB of weights, 2 to 50 GB of caches, in a process that takes less than 700 MB for it."""
    run = subprocess.run([sys.executable, "-c", FULL_SIZE, size], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)

    assert found["peak_mb"] < 700
    for phase in ("prefill", "decode"):
        graph = found[phase]
        assert graph["linear"] == 4 * layers + 1
        assert graph["attention"] == layers
        assert graph["norms"] == 2 * layers + 1
        assert graph["rotary"] == 2 * layers
        assert gigabytes[0] < graph["weight_bytes"] / 1e9 < gigabytes[1]
        assert graph["cache_bytes"] == 2 * layers * 4096 * 64 * kv_heads * 256 * 2
