"""python runners/convert.py: .bin to safetensors in place, exactly, or not at all."""

import hashlib
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.kills import kill_at_each_call

from graph_gemma.graph_model.checkpoint import convert, open_checkpoint
from graph_gemma.graph_model.checkpoint.convert import convert_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = replace(TINY_CONFIGS["one_kv_head"], dtype="bfloat16")
UNTIED = TINY_CONFIGS["untied_head"]
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts as transformers has them: a tied head shares its storage with the embedding."""
    tied = dict(make_model(CONFIG, dtype=torch.bfloat16).state_dict())
    assert tied["lm_head.weight"].data_ptr() == tied["model.embed_tokens.weight"].data_ptr()
    return {"tied": tied, "untied": dict(make_model(UNTIED).state_dict())}


def write_bin(directory: Path, state: dict[str, Any], config: GemmaConfig = CONFIG, shards: int = 1) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    weight_map = {}
    for index in range(shards):
        name = f"pytorch_model-{index + 1:05}-of-{shards:05}.bin"
        part = dict(list(state.items())[index::shards])
        torch.save(part, directory / name)
        weight_map.update(dict.fromkeys(part, name))
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def snapshot(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_refused(directory: Path, message: str, **options: Any) -> None:
    before = snapshot(directory)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(directory, **options)
    assert snapshot(directory) == before
    assert not any(path.is_dir() for path in directory.iterdir())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_result_is_equal_bit_for_bit(name: str, shards: int, states: Any, tmp_path: Path) -> None:
    config = CONFIG if name == "tied" else UNTIED
    state = {key: tensor.clone() if shards > 1 else tensor for key, tensor in states[name].items()}
    state[NORM] = state[NORM].clone()
    state[NORM][:2] = torch.tensor([float("nan"), -0.0])  # equal to itself only as bits
    write_bin(tmp_path, state, config, shards)
    sources = snapshot(tmp_path)

    written = convert_checkpoint(tmp_path)

    assert [path.name for path in written] == ["model.safetensors"]
    after = snapshot(tmp_path)
    assert after.pop("model.safetensors")
    assert after == sources
    with open_checkpoint(tmp_path, config) as checkpoint:
        assert set(checkpoint.names) == set(state) - ({"lm_head.weight"} if name == "tied" else set())
        for key in checkpoint.names:
            assert checkpoint.dtype(key) == state[key].dtype
            read, original = checkpoint.read(key), state[key]
            assert read.contiguous().view(torch.uint8).equal(original.contiguous().view(torch.uint8))


def test_tied_head_is_stored_once(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    (path,) = convert_checkpoint(tmp_path)
    stored = sum(t.nbytes for name, t in states["tied"].items() if name != "lm_head.weight")
    assert path.stat().st_size < stored + 10_000


def test_large_results_are_sharded(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    written = convert_checkpoint(tmp_path, max_shard_bytes=30_000)
    assert written[-1].name == "model.safetensors.index.json"
    assert len(written) > 3
    open_checkpoint(tmp_path, CONFIG).close()


def test_files_of_the_old_format_are_read(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    torch.save(states["tied"], tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert_checkpoint(tmp_path)
    with open_checkpoint(tmp_path, CONFIG) as checkpoint:
        assert torch.equal(checkpoint.read(NORM), states["tied"][NORM])


def test_existing_safetensors_stay_unless_overwrite_is_set(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    convert_checkpoint(tmp_path, max_shard_bytes=30_000)
    assert_refused(tmp_path, r"holds safetensors already .*overwrite=true")

    convert_checkpoint(tmp_path, overwrite=True)

    assert set(snapshot(tmp_path)) == {"config.json", "pytorch_model.bin", "model.safetensors"}


class Runs:
    """An object whose unpickling would run code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_objects_are_never_unpickled(states: Any, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    write_bin(tmp_path, {**states["tied"], "x": Runs(marker)})
    assert_refused(tmp_path, "never loaded because they could run code")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(marker)))
    assert_refused(tmp_path, "never loaded because they could run code")
    assert not marker.exists()


@pytest.mark.parametrize("cut", [0, 3, 100, -1, -1000])
def test_truncated_file_is_refused(cut: int, states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:cut])
    assert_refused(tmp_path, "pytorch_model.bin cannot be loaded as a file of tensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "must hold a dict that maps names to tensors"),
        ({"a": 1}, "the entry 'a' is not a plain tensor but a int"),
        ({"state_dict": {"a": torch.ones(1)}}, "the entry 'state_dict' is not a plain tensor but a dict"),
        ({"a": torch.ones(2).to_sparse()}, "the entry 'a' is not a plain tensor"),
        ({"a": torch.ones(2)}, "29 of the model's 29 tensors are missing"),
    ],
)
def test_file_of_other_things_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    write_bin(tmp_path, content)
    assert_refused(tmp_path, message)


def test_wrong_tensors_are_refused_before_anything_is_written(states: Any, tmp_path: Path) -> None:
    state = states["tied"]
    write_bin(tmp_path, {**state, NORM: state[NORM].double()})
    assert_refused(tmp_path, f"{NORM} has the dtype torch.float64")
    write_bin(tmp_path, {**state, NORM: torch.ones(7)})
    assert_refused(tmp_path, rf"{NORM} has the shape \[7\]")
    write_bin(tmp_path, {**state, "lm_head.weight": state["lm_head.weight"] + 1})
    assert_refused(tmp_path, "lm_head.weight differs from model.embed_tokens.weight")


def test_files_and_index_must_agree(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"], shards=3)
    index_path = tmp_path / "pytorch_model.bin.index.json"
    index = json.loads(index_path.read_text())
    shard = index["weight_map"][NORM]
    index["weight_map"]["model.other"] = shard
    index_path.write_text(json.dumps(index))
    assert_refused(tmp_path, "the index names 1 tensors that no file holds, first model.other")
    (tmp_path / shard).unlink()
    assert_refused(tmp_path, rf"1 are missing: {shard}")
    index_path.unlink()
    assert_refused(tmp_path, "no index files")


def test_directory_without_bin_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    assert_refused(tmp_path, "nothing to convert")


def test_a_result_that_reads_back_different_is_not_installed(
    states: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bin(tmp_path, states["tied"])
    write_shards = convert.write_shards

    def corrupt(directory: Path, *args: Any, **kwargs: Any) -> list[Path]:
        paths = write_shards(directory, *args, **kwargs)
        content = bytearray(paths[0].read_bytes())
        content[-1] ^= 1
        paths[0].write_bytes(content)
        return paths

    monkeypatch.setattr(convert, "write_shards", corrupt)
    assert_refused(tmp_path, "reads back different from what was written")


def test_a_failure_while_installing_is_undone(states: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bin(tmp_path, states["tied"])
    convert_checkpoint(tmp_path)
    rename = os.rename

    def fail_on_third_shard(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path and "00003-of" in Path(target).name:
            raise OSError("No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_third_shard)
    assert_refused(tmp_path, "could not be written .*No space left", overwrite=True, max_shard_bytes=30_000)


def test_shards_in_place_of_shards_are_old_or_new_at_every_kill(states: Any, tmp_path: Path) -> None:
    root, state = tmp_path / "c", {name: tensor.clone() for name, tensor in states["tied"].items()}

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "old", root)

    write_bin(root, state)
    convert_checkpoint(root, max_shard_bytes=60_000)
    old = set(snapshot(root))
    state[NORM] += 1
    torch.save(state, root / "pytorch_model.bin")
    root.rename(tmp_path / "old")
    seen = set()

    def check(n: int) -> None:
        with open_checkpoint(root, CONFIG) as checkpoint:
            norm = checkpoint.read(NORM)
            whole = [torch.equal(checkpoint.read(name), state[name]) for name in checkpoint.names if name != NORM]
            assert all(whole), f"killed at call {n}"
            assert torch.equal(norm, state[NORM]) or torch.equal(norm + 1, state[NORM])
            seen.add(bool(torch.equal(norm, state[NORM])))

    def run() -> None:
        convert_checkpoint(root, overwrite=True, max_shard_bytes=60_000)

    prepare()
    run()
    assert kill_at_each_call(run, prepare, check) > 30
    assert seen == {False, True}
    convert_checkpoint(root, overwrite=True, max_shard_bytes=60_000)
    assert len(snapshot(root)) == len(old), "nothing is left of the killed runs"
    assert not list(root.glob(".*"))


def test_only_the_model_s_own_weights_are_replaced(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    convert_checkpoint(tmp_path, max_shard_bytes=30_000)
    others = {"adapter_model.safetensors", "quant_model_weight_w8a8.safetensors", "notes.safetensors.txt"}
    for name in others:
        (tmp_path / name).write_text("precious")

    convert_checkpoint(tmp_path, overwrite=True)

    assert set(snapshot(tmp_path)) == {"config.json", "pytorch_model.bin", "model.safetensors", *others}
    assert {(tmp_path / name).read_text() for name in others} == {"precious"}
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "config.json").stat().st_mode
    )


def test_weights_that_are_the_source_are_refused(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path, states["tied"])
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").symlink_to("model.safetensors")
    assert_refused(
        tmp_path, "pytorch_model.bin is a link to model.safetensors, which would be replaced", overwrite=True
    )


def run_command(*arguments: str, cwd: Path = ROOT, module: bool = False) -> subprocess.CompletedProcess[str]:
    how = ["-m", "graph_gemma.runners.convert"] if module else [str(ROOT / "runners" / "convert.py")]
    return subprocess.run(
        [sys.executable, *how, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_command_converts_and_leaves_no_other_file(states: Any, tmp_path: Path) -> None:
    write_bin(tmp_path / "c", states["tied"])
    (tmp_path / "work").mkdir()
    result = run_command("model.path=../c", cwd=tmp_path / "work")

    assert (result.returncode, result.stderr) == (0, "")
    assert "equal bit for bit" in result.stdout
    assert "../c/model.safetensors" in result.stdout
    assert set(snapshot(tmp_path)) == {"c/config.json", "c/pytorch_model.bin", "c/model.safetensors"}


def test_command_reports_bad_input_in_one_paragraph(tmp_path: Path) -> None:
    result = run_command(f"model.path={tmp_path / 'absent'}", module=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: model.path: ")
    assert result.stderr.count("\n") == 1
