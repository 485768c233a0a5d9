"""The compile cache: found again when nothing changed, never when anything did, never when damaged."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket, BucketTable
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, linear_paths
from graph_gemma.graph_model.quantization.scheme import Scheme
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.passes.pipeline import PASSES, build_passes
from graph_gemma.runners.compile import CompileCache, CompiledModel, Recipe, num_scratch_blocks
from graph_gemma.runners.compile import step as step_module
from graph_gemma.runners.compile.cache import source_digest

CONFIG = GemmaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    dtype="float32",
)
BUCKETS = BucketTable((1,), (1,), (16,), (4,), 16)
DECODE = Bucket("decode", 1, 1, 4)


class RecordingBackend:
    """Runs eagerly, but leaves and loads an artifact: its text is what the loaded function answers with."""

    name: ClassVar[str] = "recording"
    leaves_artifacts: ClassVar[bool] = True
    device = torch.device("cpu")

    def __init__(self, options: str = "") -> None:
        self.options = options
        self.compiled = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"options": self.options}

    def kernel_passes(self, dtype: torch.dtype, scheme: Scheme | None = None) -> tuple[()]:
        return ()

    def compile(self, graph: ModelGraph, arguments: Any, artifact: Path | None) -> Any:
        self.compiled += 1
        assert artifact is not None
        artifact.write_text("7")
        return graph.module.forward

    def load(self, artifact: Path) -> Any:
        answer = int(artifact.read_text())
        return lambda *arguments: (torch.tensor([answer]),)


def recipe(cache: CompileCache, backend: RecordingBackend | None = None, **changes: Any) -> Recipe:
    default: dict[str, Any] = {
        "config": CONFIG,
        "dtype": torch.float32,
        "cache_config": KVCacheConfig(num_scratch_blocks(BUCKETS, 16) + 4, 16),
        "passes": tuple(build_passes({name: {} for name in PASSES})),
        "backend": backend or RecordingBackend(),
        "cache": cache,
    }
    return Recipe(**{**default, **changes})


def read(name: str) -> Tensor:
    from graph_gemma.graph_model.checkpoint import expected_tensors

    return torch.ones(expected_tensors(CONFIG)[name])


def warm(recipe: Recipe) -> CompiledModel:
    model = CompiledModel(recipe, BUCKETS, 64, read)
    model.warm_up([DECODE])
    return model


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache")


def test_a_second_start_loads_the_step_and_captures_nothing(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = warm(recipe(cache))
    assert (first.report.compiled, first.report.from_cache) == (1, 0)
    monkeypatch.setattr(step_module, "capture", None)  # would fail if it were called
    backend = RecordingBackend()
    second = warm(recipe(cache, backend))
    assert (second.report.compiled, second.report.from_cache, backend.compiled) == (0, 1, 0)
    assert second.run(DECODE).token_ids.tolist() == [7]
    assert second.weight_bytes == first.weight_bytes


def test_every_ingredient_changes_the_key(cache: CompileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {name: {} for name in PASSES}
    base = recipe(cache)
    variants = [
        recipe(cache, config=dataclasses.replace(CONFIG, rope_theta=500.0)),
        recipe(cache, config=dataclasses.replace(CONFIG, rms_norm_eps=1e-5)),
        recipe(cache, dtype=torch.bfloat16),
        recipe(cache, cache_config=KVCacheConfig(base.cache_config.num_blocks + 1, 16)),
        recipe(cache, cache_config=KVCacheConfig(base.cache_config.num_blocks, 32)),
        recipe(cache, passes=tuple(build_passes({**passes, "rotary": {"enabled": False}}))),
        recipe(cache, passes=tuple(build_passes({**passes, "scale_residual": {"exponent": 3}}))),
        recipe(cache, RecordingBackend("another compiler")),
    ]
    linears = linear_paths(CONFIG)
    for quantization in (
        Quantization(None, kv8=True),
        Quantization("w8a16", linears),
        Quantization("w8a16", linears[:-1]),
        Quantization("w8a16", linears, stored=True),
        Quantization("w8a16", linears, kv8=True),
        Quantization("w8a8_dynamic", linears),
    ):
        variants.append(recipe(cache, quantization=quantization))
    for shard in (Shard(0, 2), Shard(1, 2)):
        variants.append(recipe(cache, shard=shard))
        variants.append(recipe(cache, shard=shard, passes=tuple(build_passes(passes, shard))))
    keys = [variant.key(DECODE) for variant in (base, *variants)]
    buckets = [
        Bucket("decode", 2, 1, 4),
        Bucket("decode", 1, 1, 8),
        Bucket("decode", 1, 1, 4, "sample"),
        Bucket("decode", 1, 1, 4, logprobs=0),
        Bucket("decode", 1, 1, 4, logprobs=3),
        Bucket("decode", 1, 1, 4, "sample", logprobs=3),
        Bucket("prefill", 1, 16, 0),
        Bucket("prefill", 1, 32, 0),
        Bucket("extend", 1, 16, 4),
        Bucket("extend", 1, 16, 4, "score", scored=16),
        Bucket("extend", 1, 16, 4, "score", scored=32),
        Bucket("extend", 1, 16, 4, "distribution", scored=16),
    ]
    keys += [base.key(bucket) for bucket in buckets]
    monkeypatch.setattr(step_module, "source_digest", lambda: "other sources")
    keys.append(base.key(DECODE))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.99")
    keys.append(base.key(DECODE))
    assert len(set(keys)) == len(keys)


def test_the_source_digest_covers_passes_and_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_gemma.runners.compile import cache as cache_module

    before = source_digest()
    real = cache_module._sources
    for changed in ("rms_norm.py", "attention.py", "definition.py", "inductor.py", "linear.cpp"):

        def changed_sources(folders: Any, changed: str = changed) -> Any:
            return [path for path in real(folders) if path.name != changed]

        monkeypatch.setattr(cache_module, "_sources", changed_sources)
        source_digest.cache_clear()
        assert source_digest() != before, changed
        monkeypatch.undo()
    source_digest.cache_clear()
    assert source_digest() == before


def test_a_damaged_artifact_is_not_used_but_replaced(cache: CompileCache) -> None:
    warm(recipe(cache))
    (artifact,) = [path for path in (cache.root / "steps").iterdir() if not path.suffix]
    artifact.write_text("8")
    damaged = warm(recipe(cache))
    assert (damaged.report.compiled, damaged.report.from_cache) == (1, 0)
    assert artifact.read_text() == "7"
    assert warm(recipe(cache)).report.from_cache == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: json.dumps({**json.loads(text), "description": {}}),
        lambda text: json.dumps({**json.loads(text), "artifact": "../../x"}),
        lambda text: text.replace("q_proj", "TEMPORARY").replace("k_proj", "q_proj").replace("TEMPORARY", "k_proj"),
    ],
)
def test_a_damaged_entry_is_not_used_but_replaced(damage: Any, cache: CompileCache) -> None:
    warm(recipe(cache))
    (entry,) = (cache.root / "steps").glob("*.json")
    good = entry.read_text()
    entry.write_text(damage(good))
    assert entry.read_text() != good
    assert warm(recipe(cache)).report.compiled == 1
    assert entry.read_text() == good


def test_an_artifact_that_cannot_be_loaded_is_made_again(cache: CompileCache) -> None:
    class Failing(RecordingBackend):
        def load(self, artifact: Path) -> Any:
            raise AssertionError("of any kind")

    warm(recipe(cache))
    assert warm(recipe(cache, Failing())).report.compiled == 1


def test_a_cache_is_kept_within_its_limit(cache: CompileCache) -> None:
    for number in range(5):
        CompileCache(cache.root, 250_000).store(f"key{number}", {"n": number}, lambda path, n=number: _write(path, n))
    kept = [number for number in range(5) if cache.find(f"key{number}")]
    assert 1 <= len(kept) < 5
    assert 4 in kept


def test_a_failed_compilation_leaves_no_entry(cache: CompileCache) -> None:
    class FailingBackend(RecordingBackend):
        def compile(self, graph: ModelGraph, arguments: Any, artifact: Path | None) -> Any:
            assert artifact is not None
            artifact.write_text("half")
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        warm(recipe(cache, FailingBackend()))
    assert not [path for path in cache.root.rglob("*") if path.is_file()]


def test_a_step_that_cannot_be_kept_is_compiled_at_every_start(cache: CompileCache) -> None:
    class ForgetfulBackend(RecordingBackend):
        def compile(self, graph: ModelGraph, arguments: Any, artifact: Path | None) -> Any:
            self.compiled += 1
            return graph.module.forward

    for _ in range(2):
        assert warm(recipe(cache, ForgetfulBackend())).report.compiled == 1
    assert not [path for path in cache.root.rglob("*") if path.is_file()]


def test_writers_of_one_entry_at_the_same_time_leave_a_good_one(cache: CompileCache) -> None:
    def store(number: int) -> None:
        cache.store("key", {"n": 0}, _write)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(store, range(32)))  # raises what a writer raised
    found = cache.find("key")
    assert found is not None
    assert found[1].read_text() == "x" * 100_000
    assert sorted(path.suffix for path in (cache.root / "steps").iterdir()) == ["", ".json"]


def _write(path: Path, number: int = 0) -> None:
    path.write_text("x" * 100_000 + str(number or ""))


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="writable by others"):
        CompileCache(tmp_path).find("key")


def test_a_place_that_takes_no_entry_is_named_with_the_reason(cache: CompileCache, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "steps").touch()
    with pytest.raises(UserError, match=r"cache_dir: .*cache cannot be written \(.*\); what is compiled is kept there"):
        warm(recipe(cache))


def test_dumps_are_written_even_where_the_step_is_cached(cache: CompileCache, tmp_path: Path) -> None:
    warm(recipe(cache))
    warm(recipe(cache, dump_dir=tmp_path / "dumps"))
    assert (tmp_path / "dumps" / str(DECODE) / "11_select_token.txt").is_file()
