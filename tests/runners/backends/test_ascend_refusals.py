"""What the Ascend backend refuses, and when: as settings are resolved, or as torch_npu would be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.configs import TINY_CONFIGS

from graph_gemma.graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_gemma.graph_model.errors import UserError
from graph_gemma.passes.pipeline import build_kernel_options, build_passes
from graph_gemma.runners.backends.ascend.standin import loader
from graph_gemma.runners.backends.select import select_backend
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.settings.model_settings import resolve_settings

FUSED = "passes.ascend_matmul_all_reduce.enabled=true"
ONE_KV_HEAD = TINY_CONFIGS["one_kv_head"]


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"head_dim": 72}, [], r"head_dim is 72; .* multiples of 16 up to 512"),
        ({"head_dim": 528}, ["soc=atlas_300i_duo"], r"head_dim is 528; .* multiples of 16 up to 512"),
        ({}, ["soc=atlas_300i_duo", "dtype=bfloat16"], r"float16 only. Set dtype=float16"),
        ({}, ["block_size=24"], r"block_size is 24; it must be 16, 32, 64 or 128"),
    ],
)
def test_a_model_that_the_chip_cannot_run_is_refused_early(
    changes: dict[str, int], overrides: list[str], message: str, tmp_path: Path
) -> None:
    config = replace(ONE_KV_HEAD, **changes)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    with pytest.raises(UserError, match=message):
        resolve_settings(compose("infer", ["backend=torchair", f"model.path={tmp_path}", "dtype=float16", *overrides]))


def test_a_missing_torch_npu_is_named_with_its_pip_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "_is_installed", lambda name: False)
    monkeypatch.setattr(loader._STATE, "soc", None)
    with pytest.raises(UserError, match=r"torch_npu is not installed.*pip install 'graph-gemma\[ascend\]'"):
        select_backend("torchair", tmp_path, ATLAS_800I_A2)


def test_a_half_installed_cann_is_no_standin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "check_installation", lambda: None)
    monkeypatch.setattr(loader._STATE, "soc", None)

    def open_library(name: str) -> object:
        if name == "libgraph.so":
            return object()
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(loader.ctypes, "CDLL", open_library)
    with pytest.raises(UserError, match="CANN is half installed"):
        select_backend("torchair", tmp_path, ATLAS_800I_A2)
    assert not list(tmp_path.rglob("*.so"))


def settings(*overrides: str) -> Any:
    return compose("infer", ["weights=random", "model=gemma_2b", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backend=torchair", "dtype=float32"], "float16 or bfloat16"),
        (["backend=torchair", "soc=atlas_300i_duo", "dtype=bfloat16"], "in float16 only"),
        (["backend=torchair", "soc=ascend_910"], "the chips are atlas_800i_a2"),
        (["backend=torchair", "norm=quick"], "exact or fused"),
        (["soc=atlas_800i_a2"], "backend=torchair only"),
        (["norm=fused"], "backend=torchair only"),
        ([FUSED, "world_size=2"], "backend=torchair only"),
        ([FUSED, "world_size=2", "backend=torchair", "soc=atlas_300i_duo", "dtype=float16"], "no MatmulAllReduce"),
        ([FUSED, "model=gemma_7b", "world_size=16", "backend=torchair"], "joins 1, 2, 4, 8 devices"),
        ([FUSED, "world_size=2", "backend=torchair", "quant=w8a8"], "whose ranks sum int32 and float32"),
    ],
)
def test_illegal_settings_are_refused_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_settings(settings(*overrides))


def test_the_chip_is_the_800i_a2_unless_another_is_named() -> None:
    assert resolve_settings(settings("backend=torchair")).soc.name == "atlas_800i_a2"  # type: ignore[union-attr]
    assert resolve_settings(settings()).soc is None


def test_products_join_all_reduces_where_that_is_switched_on() -> None:
    given = ("backend=torchair", "world_size=2")
    assert not build_kernel_options(resolve_settings(settings(*given)).passes)
    switched_on = resolve_settings(settings(*given, FUSED)).passes
    assert [each.name for each in build_kernel_options(switched_on)] == ["ascend_matmul_all_reduce"]
    assert "ascend_matmul_all_reduce" not in [each.name for each in build_passes(switched_on)]
