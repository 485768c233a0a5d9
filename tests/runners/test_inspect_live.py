"""runners/inspect_graph.py on a graph that it lowers: the page's tables and plots, by figures worked out here."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.chip_processes import A2, DUO, ROOT
from support.standin_commands import TINY, checkpoint, command

from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.export import export
from graph_gemma.runners.inspect_graph import inspect_graph
from graph_gemma.runners.inspection.live import recipe_of
from graph_gemma.runners.settings.model_settings import resolve_settings

ROWS, HALF = 3, 2  # sequences in the step, bytes of a float16
# Of one decoder layer and what is around it.
KERNELS = {
    A2: {"MatMulV2": 5, "FusedInferAttentionScore": 1, "ScatterPaKvCache": 1, "GemmaRmsNorm": 3, "RotaryMul": 2,
         "Add": 2, "GeGluV2": 1, "SplitV": 1, "ArgMaxV2": 1},
    DUO: {"MatMulV2": 5, "IncreFlashAttention": 1, "ScatterNdUpdate": 2, "RmsNorm": 3, "RotaryMul": 2, "Add": 2,
          "GeGluV2": 1, "SplitV": 1, "ArgMaxV2": 1},
}  # fmt: skip
LAST_PASSES = {A2: "12_ascend_fused_attention", DUO: "12_ascend_flat_attention"}


def table_after(html: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    table = html[html.index(f"<h3>{heading}</h3>") :].partition("<table>")[2].partition("</table>")[0]
    return [[unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)] for row in table.split("</tr>")[:-1]]


@pytest.mark.parametrize("soc", [A2, pytest.param(DUO, marks=pytest.mark.slow)])
@pytest.mark.chip
def test_a_lowered_graph_is_shown_with_its_figures(soc: str, tmp_path: Path) -> None:
    settings = [*checkpoint(tmp_path), "backend=torchair", f"soc={soc}", "dtype=float16", "block_size=64"]
    settings += ["max_seq_len=128", f"max_batch_size={ROWS}"]
    page, picture = tmp_path / "page.html", tmp_path / "plots.svg"
    status, out, err = command(inspect_graph, "inspect_graph", *settings, f"page={page}", f"picture={picture}")
    assert status == 0, err
    html, lines = page.read_text(), [" ".join(line.split()) for line in out.splitlines()]
    chip = find_soc(soc)
    assert f"== decode-b3-w2 on {chip.product} ({chip.cann_name}) ==" in lines
    assert standin.BANNER in out
    assert standin.BANNER in html

    header, *rows = table_after(html, "Kernels by type")
    counts = {row[0]: int(row[1]) for row in rows}
    assert KERNELS[soc].items() <= counts.items()
    assert header[-2:] == ["layer 0", "outside the layers"]
    inside = {row[0]: row[-2] for row in rows}
    assert (inside["MatMulV2"], inside["ArgMaxV2"]) == ("4", "-")

    inputs = table_after(html, "Inputs and outputs")
    blocks = next(int(re.findall(r"\d+", row[3].partition("[")[2])[0]) for row in inputs if row[2] == "cache")
    blocks *= 1 if soc == A2 else 1 / 64  # the DUO's caches are read as matrices of one token per row
    head, hidden, heads = TINY.head_dim, TINY.hidden_size, TINY.num_attention_heads
    qkv = (heads + 2 * TINY.num_key_value_heads) * head
    matrices = (qkv + heads * head + 3 * TINY.intermediate_size + TINY.vocab_size) * hidden * HALF
    norms, frequencies = 3 * hidden * (HALF if soc == A2 else 4), head // 2 * 4
    caches = 2 * blocks * 64 * head * HALF
    step = 4 * ROWS * 8 + ROWS * 2 * 8
    assert f"inputs {(matrices + norms + frequencies + caches + step) / 1e3:.3g} kB" in lines
    # Behind the first product: its output, its three parts, the residual, cosines and sines, the block table.
    live = ROWS * (2 * qkv * HALF + hidden * HALF + 2 * head * HALF + 2 * 4)
    assert f"peak of live tensors {live / 1e3:.3g} kB at SplitV" in lines
    assert f"<td>{live / 1e3:.3g} kB</td><td>while SplitV runs</td>" in html

    bars = re.findall(r"<title>([^:<]+): ([\d.]+) us, bound by (\w+)</title>", html)
    assert len(bars) == sum(counts.values())
    assert picture.read_text() in html
    assert "key_cache_0" in html
    (total,) = re.findall(r"one step ([\d.]+) us at ([\d.]+) GB/s", "\n".join(lines))
    assert float(total[1]) == chip.rates.bandwidth
    assert abs(sum(float(bar[1]) for bar in bars) - float(total[0])) < 0.005 * len(bars) + 0.01

    summaries = re.findall(r"<summary>(\d\d_\w+): (.*?)</summary>", html)
    assert [name for name, _ in summaries][:2] == ["00_capture", "01_canonicalize"]
    assert LAST_PASSES[soc] in dict(summaries)
    assert all(re.fullmatch(r"\d+ lines? less, \d+ lines? new", change) for _, change in summaries[1:])
    assert re.search(r'class="del">-.*gemma\.rotary\(', html)
    assert re.search(r'class="add">\+.*npu\.npu_rotary_mul\(', html)


@pytest.mark.chip(A2)
@pytest.mark.parametrize("setting", [f"max_batch_size={2**63 - 1}", "num_blocks=1000000000000"])
@pytest.mark.parametrize(("run", "name"), [(inspect_graph, "inspect_graph"), (export, "export")])
def test_what_the_chip_has_no_memory_for_is_refused(
    run: Callable[[Any], None], name: str, setting: str, tmp_path: Path
) -> None:
    """Whatever the machine has that lowers the graph."""
    settings = ["model=gemma_2b", "weights=random", f"cache_dir={tmp_path / 'cache'}", setting]
    target = [f"export_dir={tmp_path / 'bundle'}"] if run is export else []
    status, out, err = command(run, name, *settings, *target)
    assert (status, out) == (2, "")
    assert f"error: {setting.replace('=', ' is ')}" in err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.chip(A2)
def test_a_model_larger_than_the_chip_is_shown(tmp_path: Path) -> None:
    """Its weights, 54 GB of 64, would leave no room for the cache within memory_fraction."""
    given = ["model=gemma2_27b", "weights=random", "dtype=bfloat16", f"cache_dir={tmp_path}"]
    settings = resolve_settings(compose("inspect_graph", given))
    assert settings.soc is not None
    with ExitStack() as resources:
        recipe = recipe_of(settings, resources)
    assert recipe.cache_config.num_blocks > settings.max_batch_size * settings.max_seq_len // settings.block_size


@pytest.mark.chip(A2)
def test_docs_show_what_inspecting_gemma_2b_prints(tmp_path: Path) -> None:
    """Each line of the block, in its order, and the picture."""
    page = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    blocks = page.split("\n```\npython runners/inspect_graph.py ")[1:]
    block = next(block for block in blocks if "picture=" in block.split("\n")[0]).partition("\n```\n")[0]
    given, *shown = [" ".join(line.split()) for line in block.splitlines() if line and "..." not in line]
    *settings, picture, overwrite = given.split()
    assert (picture, overwrite) == ("picture=docs/inspect_graph.svg", "overwrite=true")
    places = [f"picture={tmp_path / 'plots.svg'}", f"cache_dir={tmp_path / 'cache'}"]
    status, out, err = command(inspect_graph, "inspect_graph", *settings, *places)
    assert status == 0, err
    printed = [" ".join(line.split()) for line in out.splitlines()]
    assert len(shown) >= 10
    assert [line for line in printed if line in shown] == shown
    assert (tmp_path / "plots.svg").read_text() == (ROOT / "docs" / "inspect_graph.svg").read_text()
