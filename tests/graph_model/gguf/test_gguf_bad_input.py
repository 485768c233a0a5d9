"""GGUF files that are damaged or of other models: one error that names file, what was found, rule and way out."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

import gguf
import numpy as np
from support.gguf_files import CONFIGS, F32, small, write_gguf

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.gguf import convert_gguf, tensors
from graph_gemma.graph_model.gguf.header import read_header

ROOT = Path(__file__).parents[3]
CONFIG = small(CONFIGS["gemma3"])
KEYS, TOKENS = "gemma3.", "tokenizer.ggml."


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        convert_gguf(path, path.parent / "c")
    assert str(path) in str(caught.value)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left"


def written(tmp_path: Path, config: GemmaConfig = CONFIG, **changes: Any) -> Path:
    write_gguf(tmp_path / "m.gguf", config, **changes)
    return tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "llama"}, "general.architecture is 'llama'; read are Gemma 1, 2 and 3"),
        ({"general.type": "adapter"}, "general.type is 'adapter'; it must be a whole model"),
        ({"split.count": 3}, "split into 3 files. Merge them first: llama-gguf-split"),
        ({KEYS + "block_count": None}, "gemma3.block_count is missing; it must be an integer of at least 1"),
        ({KEYS + "block_count": 8}, "13 of the model's 106 tensors are missing: blk.7.attn_norm.weight"),
        ({KEYS + "block_count": 6}, "13 tensors are not part of this model: blk.6.attn_k.weight"),
        ({KEYS + "block_count": 2**31}, "num_hidden_layers is 2147483648; no Gemma is that large"),
        ({KEYS + "embedding_length": 0}, "gemma3.embedding_length is 0"),
        (
            {KEYS + "embedding_length": 64},
            r"has the shape \[320, 32\], but the file's other fields ask for \[320, 64\]",
        ),
        ({KEYS + "attention.head_count": [1, 2]}, r"gemma3.attention.head_count is \[1, 2\]"),
        ({KEYS + "attention.value_length": 64}, "gemma3.attention.value_length is 64; it must be 32"),
        ({KEYS + "attention.causal": False}, "gemma3.attention.causal is false|gemma3.attention.causal is False"),
        ({KEYS + "attention.scale": 0.5}, "'gemma3.attention.scale' is 0.5, and it is not known here"),
        ({KEYS + "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; Gemma 3 has none"),
        ({KEYS + "rope.scaling.type": "yarn"}, "rope_scaling asks for rope type 'yarn'"),
        ({KEYS + "attention.layer_norm_rms_epsilon": 0.0}, "rms_norm_eps is 0.0; it must be a finite number above 0"),
        ({KEYS + "attention.sliding_window_pattern": [True]}, "layer_types has 1 entries and num_hidden_layers is 7"),
        ({TOKENS + "model": "gpt2"}, "tokenizer.ggml.model is 'gpt2'; it must be 'llama'"),
        ({TOKENS + "add_space_prefix": True}, "add_space_prefix is True; it must be"),
        ({TOKENS + "scores": [0.0]}, "tokenizer.ggml.scores is 'a list of 1'; it must be a list of 320"),
        ({TOKENS + "token_type": None}, "tokenizer.ggml.token_type is missing"),
        ({TOKENS + "bos_token_id": 320}, "tokenizer.ggml.bos_token_id is 320; it must be an id below 320"),
        ({TOKENS + "tokens": ["a"] * 320}, "tokenizer.ggml.tokens is 'a'; it must be there once"),
    ],
    ids=str,
)
def test_fields_that_are_not_as_they_must_be(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(written(tmp_path, fields=fields), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file: it begins with b''"),
        (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "is GGUF of version 1; versions 2 and 3 are read"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "of the other byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "states 1099511627776 entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(64), "asks for 4611686018427387904 bytes more"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(64), "is no text in UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 77) + bytes(64), "a value of the unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**60) + bytes(64), "entries"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1) + bytes(64), "unknown type 9"),
    ],
    ids=range(10),
)
def test_files_that_are_no_gguf_or_damaged(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", message)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    for size, message in (
        (len(whole) - 40, "is cut off: copy it again"),
        (9000, "damaged or cut off"),
        (30, "cut off"),
    ):
        (tmp_path / "m.gguf").write_bytes(whole[:size])
        refused(tmp_path / "m.gguf", message)


def changed(path: Path, stored: str, change: Callable[[int, int, int], bytes]) -> None:
    """Replace what the header says of a two-dimensional tensor after its name: dimensions, type, offset."""
    content = path.read_bytes()
    name = struct.pack("<Q", len(stored)) + stored.encode()
    at = content.index(name) + len(name)
    dimensions, columns, rows = struct.unpack_from("<IQQ", content, at)
    assert dimensions == 2
    new = change(columns, rows, struct.unpack_from("<I", content, at + 20)[0])
    path.write_bytes(content[:at] + new + content[at + len(new) :])


@pytest.mark.parametrize(("kind", "named"), [(4, ""), (9, " (Q8_1)"), (999, ""), (27, " (I64)")])
def test_a_type_of_block_that_is_not_known(kind: int, named: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    changed(path, "blk.3.ffn_up.weight", lambda columns, rows, _: struct.pack("<IQQI", 2, columns, rows, kind))
    found = f"blk.3.ffn_up.weight has blocks of type {kind}{named}, which gguf {version('gguf')} does not dequantize"
    refused(path, re.escape(found))


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    path = written(tmp_path)
    q4_k = int(gguf.GGMLQuantizationType.Q4_K)
    changed(path, "blk.3.ffn_up.weight", lambda columns, rows, _: struct.pack("<IQQI", 2, columns, rows, q4_k))
    refused(path, "has rows of 32 numbers, which are no whole blocks of 256")


def test_a_tensor_that_lies_past_the_end(tmp_path: Path) -> None:
    path = written(tmp_path)
    changed(path, "blk.3.ffn_up.weight", lambda c, r, kind: struct.pack("<IQQIQ", 2, c, r, kind, 2**62))
    refused(path, "blk.3.ffn_up.weight ends at byte .*, and the file has .* bytes. It is cut off")


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float16", 1e5)])
def test_numbers_that_are_not_finite(dtype: str, value: float, tmp_path: Path) -> None:
    path = written(tmp_path)
    place = read_header(path).tensors["blk.3.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(place.offset + 400)
        file.write(struct.pack("<f", value))
    with pytest.raises(UserError, match=f"blk.3.ffn_up.weight holds numbers that are NaN or infinite in {dtype}"):
        convert_gguf(path, tmp_path / "c", dtype=dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"], "nothing is left"


def test_a_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        convert_gguf(path, tmp_path / "c")
    with pytest.raises(UserError, match="it holds mine"):
        convert_gguf(path, tmp_path / "c", overwrite=True)
    with pytest.raises(UserError, match="the result would replace what it is made from"):
        convert_gguf(path, tmp_path, overwrite=True)
    convert_gguf(path, tmp_path / "d")
    convert_gguf(path, tmp_path / "d", overwrite=True)


def test_memory_is_that_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are dequantized in pieces, and a shard is written when it is full."""
    monkeypatch.setattr(tensors, "_CHUNK", 1 << 12)
    path = written(tmp_path, CONFIGS["gemma2"], blocks=lambda stored: F32)
    tracemalloc.start()
    convert_gguf(path, tmp_path / "c", max_shard_bytes=1 << 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20 < path.stat().st_size  # numpy reports to tracemalloc, torch does not


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'graph-gemma\[gguf\]'"):
        convert_gguf(path, tmp_path / "c")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "runners" / "convert.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_command(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = run(f"model.path={path}", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "output_dir is missing: a GGUF file is converted to a new directory" in found.stderr
    found = run(f"model.path={path}", "output_dir=new", "dtype=bfloat16", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "model.safetensors" in found.stdout
    assert "tensors in " in found.stdout
