"""What the Ascend backend refuses, and when: as settings are resolved, or as torch_npu would be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.configs import TINY_CONFIGS

from graph_model.chips.atlas_800i_a2 import ATLAS_800I_A2
from graph_model.errors import UserError
from runners.backends import select_backend
from runners.backends.ascend.standin import loader
from runners.command_line.entry import compose
from runners.settings.model_settings import resolve_settings

ONE_KV_HEAD = TINY_CONFIGS["one_kv_head"]


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"head_dim": 72}, [], r"head_dim is 72; .* multiples of 16 up to 512"),
        ({"head_dim": 528}, ["soc=atlas_300i_duo"], r"head_dim is 528; .* multiples of 16 up to 512"),
        ({}, ["soc=atlas_300i_duo", "dtype=bfloat16"], r"float16 only. Set dtype=float16"),
        ({}, ["block_size=24"], r"block_size is 24; it must be one of 16, 32, 64, 128"),
    ],
)
def test_a_model_that_the_chip_cannot_run_is_refused_when_settings_are_resolved(
    changes: dict[str, int], overrides: list[str], message: str, tmp_path: Path
) -> None:
    config = replace(ONE_KV_HEAD, **changes)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    with pytest.raises(UserError, match=message):
        resolve_settings(compose("infer", ["backend=torchair", f"model.path={tmp_path}", "dtype=float16", *overrides]))


def test_a_missing_torch_npu_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
