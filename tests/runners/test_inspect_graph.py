"""inspect_graph.py on dumps: its figures, its page, and what it refuses. Lowering now: the torchair cases."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import CommandResult, run_command
from support.data import REAL_DUMP
from support.pbtxt import pbtxt

from graph_gemma.runners.backends.ascend.standin import BANNER
from graph_gemma.runners.inspect_graph import inspect_graph

pytest.importorskip("google.protobuf")
Run = Callable[..., CommandResult]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str) -> CommandResult:
        return run_command(inspect_graph, "inspect_graph", list(arguments), capsys, monkeypatch)

    return call


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A dump_dir with one step."""
    folder = tmp_path / "dump" / "decode-b3-w2"
    folder.mkdir(parents=True)
    (folder / "lowered.pbtxt").write_text(pbtxt())
    (folder / "lowered.txt").write_text("# attention: none\n%x = Data()\n")
    (folder / "00_capture.txt").write_text("# captured\nlinear = aten.linear(x)\n")
    (folder / "01_merge.txt").write_text("# after merge\nlinear = aten.linear(x & <y>)\n")
    return folder.parent


def write_graph(folder: Path, text: str) -> Path:
    path = folder / "graph.pbtxt"
    path.write_text(text)
    return path


def test_a_dump_folder_is_shown_with_its_chip_and_notes(run: Run, dump: Path) -> None:
    shown = run(f"graph={dump}")
    assert shown.status == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "== decode-b3-w2 on Atlas 300I DUO (Ascend310P3) ==" in lines
    assert "attention: none" in lines
    assert "CANN stand-in" in lines
    # 3 rows of 4, a weight of 8 x 4, 3 rows of 8, in 2 bytes
    assert any(line.startswith("MatMulV2 1 136 B") for line in lines)
    assert "views, which cost nothing: 1 Reshape" in lines
    assert "& 1 cache float16[6,4] 48 B key_cache_0, written by ScatterNdUpdate" in lines
    assert "1 weight float16[8,4] 64 B model.layers.0.proj.weight" in lines
    assert "MatMulV2:0 float16[3,8]" in lines
    assert "Constants: 1, 16 B" in lines
    assert "softmax_scale value=0.5 1 x Muls Muls in model.layers.0" in lines
    # Muls under its view, and the product
    assert "peak of live tensors 72 B at MatMulV2" in lines
    assert "estimate" in shown.stdout


def test_the_page_stands_alone_and_shows_what_passes_changed(run: Run, dump: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "plots.svg"
    assert run(f"graph={dump}", f"page={page}", f"picture={picture}", "overwrite=true").status == 0
    html = page.read_text()
    assert not re.search(r"<script|<link|src=|@import|url\(", html)
    assert re.findall(r"https?://[^\"< ]+", html) == ["http://www.w3.org/2000/svg"]
    assert html.count("<svg") == 1
    assert '<span class="del">-linear = aten.linear(x)</span>' in html
    assert '<span class="add">+linear = aten.linear(x &amp; &lt;y&gt;)</span>' in html
    assert "%MatMulV2 = MatMulV2(x1=%Reshape, x2=%arg0_1)" in html
    assert picture.read_text().startswith("<svg")
    assert picture.read_text() in html


def test_a_real_dump_is_read_where_there_is_no_torch_npu(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One decoder layer, for the Atlas 800I A2: what dump_dir wrote of it, without most of the passes' texts."""
    for name in ("torch_npu", "torchair", "torch_npu.dynamo"):
        monkeypatch.setitem(sys.modules, name, None)
    shown = run(f"graph={REAL_DUMP}", f"page={tmp_path / 'page.html'}", "context_length=100")
    assert shown.status == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    for line in (
        "== decode-b3-w2 on Atlas 800I A2 (Ascend910B3) ==",
        f"torchair for Atlas 800I A2 (Ascend910B3), norm=exact; {BANNER}",
        "attention: FusedInferAttentionScore, paged, block_size 64",
        "29 kernels; 0 TensorMove, 0 Assign, 0 Transpose, 6 Cast; 0 copies of weights, 0 inputs on the host",
        "& 2 cache float16[14,64,1,64] 229 kB key_cache_0, written by ScatterPaKvCache",
        "1 weight float16[256,48] 24.6 kB model.embed_tokens.weight",
        "ArgMaxV2:0 int64[3]",
        "embedding_scale value=6.929688 1 x Muls Muls in model",
        "softmax_scale scale=0.125 1 x FusedInferAttentionScore FusedInferAttentionScore in model.layers.0.self_attn",
        "peak of live tensors 5.69 kB at SplitV",
    ):
        assert line in lines
    # Queries, 100 keys and values of each of three rows, and what attention gives: numbers of 2 bytes.
    attention = next(line.split() for line in lines if line.startswith("FusedInferAttentionScore 1 "))
    assert attention[2:4] == ["79.9", "kB"], (2 * 3 * 4 * 64 + 2 * 3 * 100 * 64) * 2
    html = (tmp_path / "page.html").read_text()
    assert "reshape_11: f16[3, 48] = aten.reshape(mul, [3, 48])" in re.findall(r'class="add">\+ *(.*?)</span>', html)


def test_a_bare_file_and_a_dump_made_elsewhere(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "some_graph.pbtxt"
    path.write_text(re.sub(r'key: "_model_\w+"', 'key: "_other"', pbtxt()))
    shown = run(f"graph={path}", "soc=atlas_800i_a2_910b4", "context_length=7", "top=1")
    assert shown.status == 0
    assert "== some_graph on Atlas 800I A2 (910B4)" in shown.stdout
    assert "the dump does not say which nodes carry them" in shown.stdout
    assert "The 1 slowest nodes" in shown.stdout
    assert "names no chip" in run(f"graph={path}").stdout


@pytest.mark.parametrize("number", [1, -1])
def test_dtypes_and_layouts_that_are_not_known_are_shown(run: Run, tmp_path: Path, number: int) -> None:
    foreign = pbtxt().replace('layout: "ND"', 'layout: "FRACTAL_NZ"').replace("DT_FLOAT16", "DT_INT4", number)
    shown = run(f"graph={write_graph(tmp_path, foreign)}", f"page={tmp_path / 'page.html'}")
    assert shown.status == 0, shown.stderr
    assert "DT_INT4[8,4]" in shown.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('key: "index"', 'key: "indices"', id="an input without a place"),
        pytest.param('key: "num_heads"', 'key: "heads"', id="attention without its heads"),
        pytest.param(r"i: 4\n", r"i: 0\n", id="no heads"),
        pytest.param('input: "arg12_1:0"', "", id="a view of nothing"),
    ],
)
def test_a_graph_whose_nodes_make_no_sense_is_named(run: Run, tmp_path: Path, old: str, new: str) -> None:
    content = (REAL_DUMP / "decode-b3-w2" / "lowered.pbtxt").read_text()
    assert old in content
    path = write_graph(tmp_path, content.replace(old, new))
    shown = run(f"graph={path}", f"page={tmp_path / 'page.html'}")
    assert (shown.status, shown.stdout) == (2, "")
    assert f"error: graph: {path} is damaged" in shown.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_constant_of_absurd_size_is_not_made(run: Run, tmp_path: Path) -> None:
    path = write_graph(tmp_path, re.sub(r"data: .*? }", "}", pbtxt()))
    shown = run(f"graph={path}")
    assert shown.status == 2
    assert "without its values" in shown.stderr


def test_what_unknown_op_types_write_is_said_to_be_unknown(run: Run, tmp_path: Path) -> None:
    known, path = run(f"graph={write_graph(tmp_path, pbtxt())}").stdout, tmp_path / "page.html"
    assert "not known here" not in known
    foreign = pbtxt().replace('op: "ScatterNdUpdate"', 'op: "ForeignScatter"')
    shown = run(f"graph={write_graph(tmp_path, foreign)}", f"page={path}")
    assert shown.status == 0, shown.stderr
    sentence = "1 ForeignScatter: whether they write inputs by reference is unknown"
    assert sentence in shown.stdout
    assert sentence in path.read_text()
    assert "written by" in known
    assert "written by" not in shown.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pbtxt", None, "does not exist"),
        ("cut.pbtxt", pbtxt()[:-300], "not a whole GE graph"),
        ("page.html", "<html></html>", "not a whole GE graph"),
        ("empty.pbtxt", "", "not a whole GE graph"),
    ],
)
def test_what_is_not_a_graph_is_refused(run: Run, name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    found = run(f"graph={path}", f"page={tmp_path / 'report'}")
    assert found.status == 2
    assert name in found.stderr
    assert message in found.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("page=missing/page.html", "does not exist"),
        ("picture=.", "is a directory"),
        ("top=0", "at least 1"),
        ("context_length=many", "an integer of at least 1"),
        ("soc=ascend_910", "the chips are"),
    ],
)
def test_bad_settings_are_refused(run: Run, dump: Path, override: str, message: str) -> None:
    found = run(f"graph={dump}", override)
    assert found.status == 2
    assert message in found.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_page_that_cannot_be_written_is_refused(run: Run, dump: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    found = run(f"graph={dump}", f"page={folder / 'page.html'}")
    assert found.status == 2
    assert "no permission" in found.stderr


def test_folders_without_graphs_and_other_backends_are_refused(run: Run, tmp_path: Path) -> None:
    assert "holds no .pbtxt" in run(f"graph={tmp_path}").stderr
    assert "only graphs of backend=torchair" in run("backend=eager").stderr
    assert "phase is 'warm'" in run("phase=warm").stderr
    assert "above max_seq_len" in run("context_length=9999", "max_seq_len=256").stderr
