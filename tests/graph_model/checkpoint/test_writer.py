"""A checkpoint is written whole or not at all."""

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.checkpoint import open_checkpoint, save_checkpoint, writer
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.transformers_import import import_transformers

CONFIG = TINY_CONFIGS["grouped_kv_heads"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return dict(make_model(CONFIG).named_parameters())


def assert_holds(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        assert set(checkpoint.names) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)


def everything_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_written_checkpoint_loads_here_and_in_transformers(tensors: dict[str, Any], tmp_path: Path) -> None:
    extra = tmp_path / "source.txt"
    extra.write_text("copied")
    target = tmp_path / "new" / "checkpoint"
    save_checkpoint(target, tensors, CONFIG.to_json(), {"a.txt": extra, "b.bin": b"\x00\x01"})

    assert everything_in(target) == {"model.safetensors", "config.json", "a.txt", "b.bin", writer.FILE_LIST}
    assert everything_in(target.parent) == {"checkpoint", *(f"checkpoint/{n}" for n in everything_in(target))}
    assert (target / "a.txt").read_text() == "copied"
    assert (target / "b.bin").read_bytes() == b"\x00\x01"
    assert read_config(target) == CONFIG
    assert_holds(target, tensors)
    theirs = import_transformers().GemmaForCausalLM.from_pretrained(target)
    assert all(torch.equal(p, tensors[name]) for name, p in theirs.named_parameters())
    usual = tmp_path / "usual"
    usual.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    extra.chmod(0o600)
    (tmp_path / "usual_file").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (*target.iterdir(), tmp_path / "usual_file")}
    assert len(modes) == 1, "all files have the umask's mode"


def test_above_the_size_limit_it_is_sharded(tensors: dict[str, Any], tmp_path: Path) -> None:
    limit = sum(t.nbytes for t in tensors.values()) // 3
    save_checkpoint(tmp_path / "c", iter(tensors.items()), CONFIG.to_json(), max_shard_bytes=limit)

    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    assert 3 <= len(shards) <= 6
    assert all(path.stat().st_size < limit + 10_000 for path in shards)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert_holds(tmp_path / "c", tensors)
    theirs = import_transformers().GemmaForCausalLM.from_pretrained(tmp_path / "c")
    assert all(torch.equal(p, tensors[name]) for name, p in theirs.named_parameters())


def test_views_and_shared_tensors_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    paths = writer.write_shards(tmp_path, {"a": base, "b": base, "t": base.T, "param": torch.nn.Parameter(base)})
    from safetensors.torch import load_file

    assert [path.name for path in paths] == ["model.safetensors"]
    read = load_file(paths[0])
    assert torch.equal(read["a"], base)
    assert torch.equal(read["b"], base)
    assert torch.equal(read["t"], base.T)
    assert torch.equal(read["param"], base)


def test_existing_target_is_refused_and_untouched(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tensors, CONFIG.to_json())
    before = (tmp_path / "c" / "model.safetensors").stat()
    with pytest.raises(UserError, match=r"c exists already.*overwrite=true"):
        save_checkpoint(tmp_path / "c", tensors, CONFIG.to_json())
    assert (tmp_path / "c" / "model.safetensors").stat() == before


def test_overwrite_replaces_the_whole_directory(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tensors, CONFIG.to_json(), {"old.txt": b"old"})
    other = {name: tensor * 2 for name, tensor in tensors.items()}
    save_checkpoint(tmp_path / "c", other, replace(CONFIG, dtype="float16").to_json(), overwrite=True)

    assert everything_in(tmp_path) == {"c", "c/model.safetensors", "c/config.json", f"c/{writer.FILE_LIST}"}
    assert read_config(tmp_path / "c").dtype == "float16"
    assert_holds(tmp_path / "c", other)


def test_overwrite_never_replaces_what_is_not_written_here(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", tensors, CONFIG.to_json())
    (tmp_path / "c" / "NOTES.txt").write_text("precious")
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    before = everything_in(tmp_path)
    for name, what in {
        "c": f"{writer.FILE_LIST} there does not name NOTES.txt",
        "project": f"it holds config.json and no {writer.FILE_LIST}",
        "file": "it is no directory",
        "link": "it is no directory",
    }.items():
        with pytest.raises(UserError, match=f"{name}: overwrite=true replaces .* and {what}"):
            save_checkpoint(tmp_path / name, tensors, CONFIG.to_json(), overwrite=True)
    assert everything_in(tmp_path) == before


def test_target_that_holds_the_source_is_refused(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a" / "c", tensors, CONFIG.to_json())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "linked_files").mkdir()
    (tmp_path / "linked_files" / "model.safetensors").symlink_to(tmp_path / "a" / "c" / "model.safetensors")
    for source in ("a/c", "linked_files"):
        for target in ("a/c", "a/c/../c", "link/c", "a"):
            with pytest.raises(UserError, match=r"output_dir is .* and model\.path is .*Give another output_dir"):
                writer.check_target(
                    tmp_path / target, overwrite=True, setting="output_dir", inputs={"model.path": tmp_path / source}
                )
    save_checkpoint(tmp_path / "a" / "c" / "inside", tensors, CONFIG.to_json())
    inputs = {"model.path": tmp_path / "a" / "c"}
    writer.check_target(tmp_path / "a" / "c" / "inside", overwrite=True, setting="output_dir", inputs=inputs)


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [Interrupt, OSError("No space left on device")])
@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_nothing_behind(error: Any, existing: bool, tensors: dict[str, Any], tmp_path: Path) -> None:
    if existing:
        save_checkpoint(tmp_path / "c", tensors, CONFIG.to_json())
    before = everything_in(tmp_path)

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(tensors.items())[:20]
        raise error

    expected = Interrupt if error is Interrupt else UserError
    with pytest.raises(expected, match=None if expected is Interrupt else "No space left.*Nothing was left"):
        save_checkpoint(tmp_path / "c", failing(), CONFIG.to_json(), max_shard_bytes=20_000, overwrite=existing)

    assert everything_in(tmp_path) == before
    if existing:
        assert_holds(tmp_path / "c", tensors)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="given twice"):
        writer.write_shards(tmp_path, [("a", torch.ones(1)), ("a", torch.ones(1))])


def test_target_below_a_file_is_refused(tensors: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "c", tensors, CONFIG.to_json())
