"""Reading Hugging Face directories, and what is said of broken ones."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.checkpoint import expected_tensors, open_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError

CONFIG = TINY_CONFIGS["one_kv_head"]
UNTIED = TINY_CONFIGS["untied_head"]
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as transformers saves them."""
    root = tmp_path_factory.mktemp("saved")
    make_checkpoint(root / "single", CONFIG, dtype=torch.bfloat16)
    make_checkpoint(root / "sharded", CONFIG, dtype=torch.bfloat16, sharded=True)
    make_checkpoint(root / "untied", UNTIED)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy_of(name: str) -> Path:
        return Path(shutil.copytree(saved[name], tmp_path / "checkpoint"))

    return copy_of


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite model.safetensors after `change` to its tensors."""
    path = directory / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_index(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def assert_refused(directory: Path, message: str, config: GemmaConfig = CONFIG) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(directory, config)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["single", "sharded"])
def test_reads_what_transformers_saved(name: str, saved: dict[str, Path]) -> None:
    if name == "sharded":
        assert len(list(saved[name].glob("model-*-of-*.safetensors"))) >= 3
    truth: dict[str, torch.Tensor] = {}
    for file in saved[name].glob("*.safetensors"):
        truth |= load_file(file)
    with open_checkpoint(saved[name], CONFIG) as checkpoint:
        assert checkpoint.names == list(expected_tensors(CONFIG))
        assert set(checkpoint.names) == set(truth)
        for tensor_name in checkpoint.names:
            assert checkpoint.shape(tensor_name) == tuple(truth[tensor_name].shape)
            assert checkpoint.dtype(tensor_name) == torch.bfloat16
            assert torch.equal(checkpoint.read(tensor_name), truth[tensor_name])


def test_untied_head_is_read(saved: dict[str, Path]) -> None:
    with open_checkpoint(saved["untied"], UNTIED) as checkpoint:
        truth = load_file(saved["untied"] / "model.safetensors")["lm_head.weight"]
        assert torch.equal(checkpoint.read("lm_head.weight"), truth)


def test_slices_are_views_of_the_mapped_tensor(saved: dict[str, Path]) -> None:
    with open_checkpoint(saved["single"], CONFIG) as checkpoint:
        name = "model.layers.0.mlp.down_proj.weight"
        whole = checkpoint.read(name)
        rows = checkpoint.read_slice(name, 0, 8, 24)
        columns = checkpoint.read_slice(name, 1, 32, 64)

        assert torch.equal(rows, whole[8:24])
        assert torch.equal(columns, whole[:, 32:64])
        assert checkpoint.read(name).data_ptr() == whole.data_ptr()
        assert rows.data_ptr() == whole[8:].data_ptr()
        assert columns.data_ptr() == whole[:, 32:].data_ptr()
        assert torch.equal(
            checkpoint.read_slice("model.norm.weight", 0, 3, 5), checkpoint.read("model.norm.weight")[3:5]
        )
        with pytest.raises(ValueError, match="not within dimension 1"):
            checkpoint.read_slice(name, 1, 0, whole.shape[1] + 1)


def test_tensors_outlive_the_checkpoint_and_release(saved: dict[str, Path]) -> None:
    with open_checkpoint(saved["single"], CONFIG) as checkpoint:
        embedding = checkpoint.read("model.embed_tokens.weight")
        before = embedding.clone()
        checkpoint.release("model.embed_tokens.weight")
    assert torch.equal(embedding, before)


def test_single_file_of_another_name_is_taken(copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    (directory / "model.safetensors").rename(directory / "gemma.safetensors")
    (directory / "._gemma.safetensors").write_bytes(b"a file that some systems leave next to each file")
    open_checkpoint(directory, CONFIG).close()


def test_single_file_goes_before_an_index(copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    (directory / "model.safetensors.index.json").write_text("left over")
    open_checkpoint(directory, CONFIG).close()


def test_copy_of_the_tied_head_and_rotary_tables_are_let_through(copy: Callable[[str], Path]) -> None:
    directory = copy("single")

    def change(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    edit(directory, change)
    with open_checkpoint(directory, CONFIG) as checkpoint:
        assert checkpoint.names == list(expected_tensors(CONFIG))


def test_a_head_that_differs_from_its_tied_embedding_is_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    edit(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 1.5}))
    assert_refused(directory, "lm_head.weight differs from model.embed_tokens.weight.*tie_word_embeddings to false")


def test_mixed_dtypes_are_kept(copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    edit(directory, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float(), K_PROJ: t[K_PROJ].half()}))
    with open_checkpoint(directory, CONFIG) as checkpoint:
        assert checkpoint.dtype("model.norm.weight") == torch.float32
        assert checkpoint.dtype(K_PROJ) == torch.float16
        assert checkpoint.dtype("model.embed_tokens.weight") == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(K_PROJ), rf"1 of the model's 29 tensors are missing: {K_PROJ}"),
        (lambda t: [t.pop(n) for n in list(t) if "mlp" in n], r"9 of .* missing: .* and 5 more"),
        (lambda t: t.update(extra=torch.ones(1)), r"1 tensors are not part of this model: extra"),
        (
            lambda t: t.update({f"x.{K_PROJ}": t.pop(K_PROJ)}),
            rf"missing: {K_PROJ}; 1 tensors are not part of this model: x\.",
        ),
        (
            lambda t: t.update({K_PROJ: t[K_PROJ].T.contiguous()}),
            rf"{K_PROJ} has the shape \[48, 16\], but config.json asks for \[16, 48\]",
        ),
        (lambda t: t.update({K_PROJ: t[K_PROJ].to(torch.int8)}), rf"{K_PROJ} has the dtype I8"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].double()}), rf"{K_PROJ} has the dtype F64"),
    ],
)
def test_wrong_tensors_are_named(change: Any, message: str, copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    edit(directory, change)
    assert_refused(directory, message)


def test_config_with_other_sizes_is_refused(saved: dict[str, Path]) -> None:
    assert_refused(saved["single"], "9 of .* missing", replace(CONFIG, num_hidden_layers=4))
    assert_refused(saved["single"], "9 tensors are not part", replace(CONFIG, num_hidden_layers=2))
    assert_refused(saved["single"], "missing: lm_head.weight", replace(CONFIG, tie_word_embeddings=False))
    assert_refused(saved["single"], r"\(9 tensors in all", replace(CONFIG, intermediate_size=95))


def test_quantized_checkpoint_is_refused(saved: dict[str, Path]) -> None:
    assert_refused(saved["single"], "quantize is 'w8a8'", replace(CONFIG, quantize="w8a8"))


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file_is_refused(size: int, copy: Callable[[str], Path]) -> None:
    directory = copy("single")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(directory, r"model.safetensors is not a readable safetensors file .* truncated or damaged")


NO_SAFETENSORS = "not a readable safetensors file"
BAD_INDEX = "index.json (is not valid JSON|has no weight_map|holds a JSON list)"
INDEXES = ("", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\x00")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("single", "model.safetensors", b"garbage" * 100, NO_SAFETENSORS),
        ("single", "model.safetensors", b"\xff" * 64, NO_SAFETENSORS),
        ("single", "model.safetensors", b"\x02\0\0\0\0\0\0\0[]", NO_SAFETENSORS),
        ("single", "model.safetensors", b"PK\x03\x04" + b"\0" * 60, NO_SAFETENSORS),
        ("single", "model.safetensors", LFS_POINTER, "git lfs pull"),
        *(("sharded", "model.safetensors.index.json", text.encode(), BAD_INDEX) for text in INDEXES),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_unreadable_content_is_refused(
    name: str, file: str, content: bytes, message: str, copy: Callable[[str], Path]
) -> None:
    directory = copy(name)
    (directory / file).write_bytes(content)
    assert_refused(directory, message)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"holds no weights")
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    assert_refused(tmp_path, rf"graph-gemma convert model.path={tmp_path}")
    assert_refused(tmp_path / "absent", "is not a directory")


def test_missing_shard_is_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    assert_refused(directory, rf"1 are missing: {shard.name}")


def test_shard_that_the_index_does_not_name_is_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    shard = sorted(directory.glob("*.safetensors"))[1]

    def change(index: dict[str, Any]) -> None:
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != shard.name}

    edit_index(directory, change)
    assert_refused(directory, rf"{shard.name} is a shard that model.safetensors.index.json does not name")


def test_index_and_shards_that_disagree_are_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    first, second = sorted(directory.glob("*.safetensors"))[:2]

    def swap(index: dict[str, Any]) -> None:
        names = {first.name: second.name, second.name: first.name}
        index["weight_map"] = {k: names.get(v, v) for k, v in index["weight_map"].items()}

    edit_index(directory, swap)
    assert_refused(directory, r"lacks \d+ tensors that the index says it holds")


def test_tensor_that_the_index_leaves_out_is_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    edit_index(directory, lambda index: index["weight_map"].pop(K_PROJ))
    assert_refused(directory, rf"holds 1 tensors that the index does not name, first {K_PROJ}")


def test_shards_without_an_index_are_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    (directory / "model.safetensors.index.json").unlink()
    assert_refused(directory, "no index files")


OUTSIDE = ("../single/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "x.bin", "C:\\x.safetensors")


@pytest.mark.parametrize("name", [*OUTSIDE, 7, None, ""])
def test_index_must_not_lead_out_of_the_directory(name: Any, copy: Callable[[str], Path]) -> None:
    directory = copy("sharded")
    edit_index(directory, lambda index: index["weight_map"].update({K_PROJ: name}))
    assert_refused(directory, f"says that {K_PROJ} is in .*plain name")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_header_is_refused_or_harmless(data: st.DataObject, saved: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray((saved["single"] / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(content)
    try:
        with open_checkpoint(tmp_path, CONFIG) as checkpoint:
            read = {name: tuple(checkpoint.read(name).shape) for name in checkpoint.names}
    except UserError:
        return
    assert read == expected_tensors(CONFIG)
