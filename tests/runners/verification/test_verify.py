"""runners/verify.py over the stand-in, and as on a device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chip_processes import A2, DUO
from support.data import LISTINGS
from support.standin_commands import TINY, checkpoint, command

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.interpreter.registry import OPS
from graph_gemma.runners.verification import acceptance, run
from graph_gemma.runners.verification.representative_steps import RepresentativeStep
from graph_gemma.runners.verification.single_ops import SingleOp
from graph_gemma.runners.verify import verify


def report_of(soc: str, folder: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The report on a one-layer model, which is printed too."""
    target = folder / "report"
    settings = [
        *checkpoint(folder),
        f"soc={soc}",
        f"report_dir={target}",
        "overwrite=true",
        "max_batch_size=1",
        *arguments,
    ]
    found, out, err = command(verify, "verify", *settings)
    assert (target / "report.json").is_file(), err
    report: dict[str, Any] = json.loads((target / "report.json").read_text())
    assert found == status, (report["failures"][:5], err)
    assert report["passed"] == (status == 0)
    assert (target / "report.txt").read_text() in out
    assert not list(target.glob(".*"))
    return report


def listed_types(soc: str) -> set[str]:
    """The op types of the chip's reviewed listings; collectives need several devices."""
    listings = list(LISTINGS.glob(f"{soc}-*.txt"))
    assert listings
    lines = [next(line for line in path.read_text().splitlines() if line.startswith("ops: ")) for path in listings]
    types = {item.split()[0] for line in lines for item in line.removeprefix("ops: ").split(", ")}
    return {name for name in types if not name.startswith("Hcom")}


def verified(soc: str, folder: Path, *arguments: str) -> set[str]:
    """The op types of a report on the stand-in that has no failure and covers every kind of step, whatever model."""
    report = report_of(soc, folder, *arguments)
    text = (folder / "report/report.txt").read_text()
    assert standin.BANNER in text
    assert "NO NPU WAS USED" in text
    assert text.endswith("passed, on the stand-in\n")
    assert report["where"] == "stand-in"
    buckets = [step["bucket"] for step in report["steps"]]
    assert {bucket.split("-")[0] for bucket in buckets} == {"prefill", "extend", "decode"}
    for kind in ("sample", "score", "distribution"):
        assert any(kind in bucket for bucket in buckets), buckets
    assert all(op["formula"] is not None and op["engine"] == 0.0 for op in report["ops"])
    types = {op["type"] for op in report["ops"]}
    assert listed_types(soc) <= types, listed_types(soc) - types
    assert {op["type"] for op in report["ops"] if op["step"] in buckets} < types
    return types


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_verify_checks_every_op_of_a_quantized_model(tmp_path: Path) -> None:
    types = verified(A2, tmp_path, "quant=w8a8_dynamic")
    assert {"DynamicQuant", "QuantBatchMatmulV3", "FusedInferAttentionScore", "RotaryMul", "Sort"} <= types
    # Of other configurations: int8 caches, also of several key heads; fused norms; w8a16; several ranks.
    assert {"DynamicQuantUpdateScatter", "FloorMod", "AddRmsNorm", "WeightQuantBatchMatmulV2"} <= types
    assert {"GemmV2", "DequantBias", "ArgMaxWithValue"} <= types


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_verify_checks_every_op_of_the_a2(tmp_path: Path) -> None:
    types = verified(A2, tmp_path)
    assert {"FusedInferAttentionScore", "ScatterPaKvCache", "GemmaRmsNorm", "RotaryMul", "GeGluV2", "Sort"} <= types


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_verify_checks_an_int8_cache_and_fused_norms(tmp_path: Path) -> None:
    types = verified(A2, tmp_path, "quant=kv8", "norm=fused", "block_size=128")
    assert {"AddRmsNorm", "DynamicQuantUpdateScatter", "FusedInferAttentionScore"} <= types, types


@pytest.mark.slow
@pytest.mark.chip(DUO)
def test_verify_checks_every_op_of_the_duo(tmp_path: Path) -> None:
    types = verified(DUO, tmp_path, "dtype=float16")
    assert {"PromptFlashAttention", "IncreFlashAttention", "ScatterNdUpdate", "RmsNorm"} <= types
    assert not {"GemmV2", "DequantBias"} & types


@contextmanager
def patches() -> Iterator[pytest.MonkeyPatch]:
    """A short workload and no steps of other models, for what does not depend on them."""
    workload = run._workload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_PROMPT_LENGTHS", (7,))
        patch.setattr(run, "_workload", lambda *arguments: {"greedy": workload(*arguments)["greedy answers"]})
        patch.setattr(run, "representative_steps", lambda soc: [])
        yield patch


@pytest.mark.chip(A2)
def test_verify_fails_where_the_interpreter_has_an_op_wrong(tmp_path: Path) -> None:
    spec = OPS["GeGluV2"]

    def wrong(x: torch.Tensor, **attributes: Any) -> tuple[torch.Tensor, ...]:
        activated, *others = spec.kernel(x, **attributes)
        return (activated * 1.05, *others)

    with patches() as patch:
        patch.setitem(OPS, "GeGluV2", replace(spec, kernel=wrong))
        report = report_of(A2, tmp_path, status=1)
    assert {op["type"] for op in report["ops"] if op["problem"]} == {"GeGluV2"}
    assert all("differs from the formula" in op["problem"] for op in report["ops"] if op["problem"])
    assert all("The first that differs is GeGluV2" in step["findings"]["problems"][0] for step in report["steps"])
    text = (tmp_path / "report/report.txt").read_text()
    assert text.endswith("FAILED, on the stand-in\n")
    assert next(line.split()[0] for line in text.splitlines() if "DIFFERS" in line) == "GeGluV2"


@pytest.mark.chip(A2)
def test_verify_fails_where_another_configurations_op_is_wrong(tmp_path: Path) -> None:
    other = RepresentativeStep(Bucket("decode", 2, 1, 2), TINY, norm="fused")
    spec = OPS["AddRmsNorm"]

    def without_weight(x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, **attributes: Any) -> Any:
        return spec.kernel(x1, x2, torch.ones_like(gamma), **attributes)

    def refused(*inputs: torch.Tensor, **attributes: Any) -> Any:
        raise GeGraphError("no such kernel")

    with patches() as patch:
        patch.setattr(run, "representative_steps", lambda soc: [other])
        patch.setitem(OPS, "AddRmsNorm", replace(spec, kernel=without_weight))
        report = report_of(A2, tmp_path / "wrong", status=1)
        assert {(op["type"], op["step"]) for op in report["ops"] if op["problem"]} == {("AddRmsNorm", str(other))}
        assert all(f"of {other}: output 0" in failure for failure in report["failures"])
        patch.setitem(OPS, "AddRmsNorm", replace(spec, kernel=refused))
        report = report_of(A2, tmp_path / "refused", status=1)
    (failure,) = report["failures"]
    assert failure.startswith(f"{other}: the step could not run: ")
    assert "no such kernel" in failure


def on_a_device(patch: pytest.MonkeyPatch, change: Callable[[SingleOp, list[torch.Tensor]], None]) -> None:
    """Let the stand-in pass for a device that computes single ops as the interpreter does, but for `change`."""

    def engine(single: SingleOp) -> list[torch.Tensor]:
        outputs = [output.clone() for output in acceptance.interpret(single)]
        change(single, outputs)
        return outputs

    patch.setattr(acceptance, "run_on_engine", engine)
    patch.setattr(standin, "is_standin", lambda: False)
    patch.setattr(run, "describe_device", lambda: {"device": "a device", "cann": "8"})


def other_rounding(single: SingleOp, outputs: list[torch.Tensor]) -> None:
    """The last place of every 16-bit number, and one quantized number by a unit."""
    for output in outputs:
        if output.dtype in (torch.float16, torch.bfloat16):
            output *= 1 + torch.finfo(output.dtype).eps
        elif output.dtype == torch.int8 and single.node.type == "DynamicQuant":
            last = output.view(-1)[-1:]
            last += -1 if last > 0 else 1


def scale_lost(single: SingleOp, outputs: list[torch.Tensor]) -> None:
    if single.node.type == "QuantBatchMatmulV3":
        outputs[0] *= 2


@pytest.mark.chip(A2)
def test_verify_compares_a_device_with_the_interpreter(tmp_path: Path) -> None:
    with patches() as patch:
        on_a_device(patch, other_rounding)
        report = report_of(A2, tmp_path / "sound", "quant=w8a8_dynamic")
    assert (report["where"], report["device"]) == ("device", {"device": "a device", "cann": "8"})
    assert "on the device; both are compared with the interpreter" in report["statement"]
    assert "NO NPU" not in (tmp_path / "sound/report/report.txt").read_text()
    assert any(op["engine"] > 0 for op in report["ops"])
    with patches() as patch:
        on_a_device(patch, scale_lost)
        report = report_of(A2, tmp_path / "wrong", "quant=w8a8_dynamic", status=1)
    wrong = [op for op in report["ops"] if op["problem"]]
    assert {op["type"] for op in wrong} == {"QuantBatchMatmulV3"}
    assert all("the device differs from the interpreter" in op["problem"] for op in wrong)
    assert (tmp_path / "wrong/report/report.txt").read_text().endswith("FAILED, on the device\n")


@pytest.mark.chip(A2)
def test_verify_refuses_what_it_cannot_do_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([f"report_dir={tmp_path / 'file'}"], "report_dir"),
        (["backend=eager"], "one Ascend chip"),
    ):
        status, out, err = command(verify, "verify", f"report_dir={tmp_path / 'report'}", *arguments)
        assert (status, out) == (2, "")
        assert message in err
    assert not (tmp_path / "report").exists()


@pytest.mark.chip(A2)
@pytest.mark.parametrize("setting", [f"max_batch_size={2**63 - 1}", "num_blocks=1000000000000"])
def test_what_there_is_no_memory_for_is_refused(setting: str, tmp_path: Path) -> None:
    settings = [f"report_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "dtype=float16", setting]
    status, out, err = command(verify, "verify", *settings)
    assert (status, out) == (2, "")
    assert f"error: {setting.replace('=', ' is ')}" in err
    assert not list(tmp_path.glob("report.*"))
