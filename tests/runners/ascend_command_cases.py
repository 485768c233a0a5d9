"""Ops of lowered graphs, each alone, and runners/export.py over the stand-in. See support.standin_cases."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.checkpoints import make_checkpoint
from support.standin_cases import A2, ROOT, Cases

from graph_model.ascend import acceptance, standin
from graph_model.ascend.bundle import read_bundle
from graph_model.ascend.exported_model import ExportedModel
from graph_model.ascend.lower import lower
from graph_model.ascend.single_ops import SingleOp, cut_out_ops
from graph_model.ascend.soc import find_soc
from graph_model.bucket import Bucket
from graph_model.errors import UserError
from runners.engine.llm import LLM as EngineLLM
from runners.engine.sampling_params import SamplingParams
from runners.entry import main as run_command
from runners.export import export
from runners.infer import infer

CASES = Cases()
HALF = torch.float16
TINY = replace(steps.BASE, num_hidden_layers=1)
PROMPTS = [[5, 6, 7], list(range(3, 80))]
SERVING = ("max_prefill_tokens=64", "max_prefill_batch_size=1", "max_batch_size=1", "max_seq_len=128")


def command(run: Callable[[Any], None], name: str, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{name}.py", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(run, name)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


def checkpoint(folder: Path) -> list[str]:
    """Settings that name a small checkpoint."""
    make_checkpoint(folder / "checkpoint", TINY, dtype=HALF)
    return [f"model.path={folder / 'checkpoint'}", f"cache_dir={folder / 'cache'}"]


def perturbed(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors, one element of the first off by 5 % of the largest value, or by 1."""
    first = values[0].clone()
    flat = first.view(-1)
    if first.is_floating_point():
        finite = flat[flat.isfinite()]
        flat[-1] = 0.05 * finite.abs().max().clamp(min=1e-2) + (flat[-1] if flat[-1].isfinite() else 0.0)
    else:
        flat[-1] = ~flat[-1] if first.dtype is torch.bool else flat[-1] + 1
    return [first, *values[1:]]


@cache
def single_ops(soc: str) -> list[SingleOp]:
    found: dict[str, SingleOp] = {}
    for phase in ("extend", "decode"):
        case = steps.StepCase(TINY, HALF, 64, phase)
        graph = case.selected(find_soc(soc))
        inputs = steps.step_inputs(case)
        caches = [cache.nan_to_num() for cache in steps.filled_caches(case, graph, inputs)]
        arguments = [*steps.weights_of(graph, case), *caches, *(inputs[n.name] for n in graph.placeholders("input"))]
        found.update(cut_out_ops(lower(graph), arguments))
    return list(found.values())


@CASES.add(A2)
def an_error_in_any_op_is_noticed(folder: Path) -> None:
    unnoticed = []
    interpret = acceptance.interpret
    for single in single_ops(A2):
        assert not acceptance.verify_op(single).problem, acceptance.verify_op(single)
        for name, who in (("interpret", "the interpreter differs from the formula"), ("run_on_engine", "the stand-in")):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(acceptance, name, lambda one: perturbed(interpret(one)))
                if who not in acceptance.verify_op(single).problem:
                    unnoticed.append((single.key, who))
    assert not unnoticed, unnoticed


@CASES.add(A2)
def an_op_fails_where_an_op_has_no_formula_or_the_engine_refuses(folder: Path) -> None:
    single = next(one for one in single_ops(A2) if one.node.type == "GeGluV2")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(acceptance.FORMULAS, "GeGluV2")
        assert "no formula" in acceptance.verify_op(single).problem

    def refuse(one: SingleOp) -> list[torch.Tensor]:
        raise RuntimeError("E10001")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptance, "run_on_engine", refuse)
        patch.setattr(standin, "is_standin", lambda: False)
        assert acceptance.verify_op(single).problem == "the device refuses it: E10001"


LOAD = """
import json, sys
import graph_model
from pathlib import Path
from graph_model.ascend.bundle import read_bundle
from graph_model.ascend.exported_model import ExportedModel
from runners.engine.llm import LLM
from runners.engine.sampling_params import SamplingParams
llm = LLM(ExportedModel(read_bundle(Path(sys.argv[1]))))
results = llm.generate(json.loads(sys.argv[2]), SamplingParams(max_new_tokens=6, ignore_eos=True))
assert not {"torch_npu", "torchair", "passes", "graph_model.capture", "graph_model.gemma"} & set(sys.modules)
print(json.dumps([result.token_ids for result in results]))
"""


@CASES.add(A2)
def an_exported_model_gives_the_tokens_of_the_one_it_came_from(folder: Path) -> None:
    settings = [*checkpoint(folder), *SERVING]
    bundle = folder / "bundle"
    status, out, err = command(export, "export", *settings, f"export_dir={bundle}")
    assert status == 0, err
    for name in ("decode-b1-w2", "extend-b1-t64-w2", "prefill-b1-t64"):
        assert f"{name}.pb" in out
    generate = [f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6", "ignore_eos=true", "backend=torchair"]
    assert command(infer, "infer", *settings, *generate, f"output_file={folder / 'answers'}")[0] == 0
    answers = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    expected = [a["token_ids"] for a in sorted(answers, key=lambda a: a["index"])]

    script = [sys.executable, "-c", LOAD, str(bundle), json.dumps(PROMPTS)]
    loaded = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout) == expected
    engine = EngineLLM(ExportedModel(read_bundle(bundle), on_engine=True))
    results = engine.generate(PROMPTS, SamplingParams(max_new_tokens=6, ignore_eos=True))
    assert [result.token_ids for result in results] == expected

    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["soc"]["cann_name"] == "Ascend910B3"
    decode = next(step for step in manifest["steps"] if step["bucket"]["phase"] == "decode")
    assert {i["name"] for i in decode["inputs"] if i["by_reference"]} == {"key_cache_0", "value_cache_0"}
    with pytest.raises(UserError, match="holds no graph for decode-b2-w2"):
        ExportedModel(read_bundle(bundle)).inputs(Bucket("decode", 2, 1, 2))
    status, _, err = command(export, "export", *settings, f"export_dir={bundle}")
    assert status == 2, "a bundle is replaced only when that is asked for"
    assert "exists already" in err
    refuse_damaged_bundles(bundle, folder / "damaged")


def refuse_damaged_bundles(bundle: Path, copy: Path) -> None:
    def truncate(name: str) -> None:
        (copy / name).write_bytes((bundle / name).read_bytes()[:-100])

    def flip(name: str) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))

    graph = "decode-b1-w2.pb"
    damages: list[tuple[str, Callable[[], object]]] = [
        ("is not the file that was exported", lambda: truncate(graph)),
        ("is not the file that was exported", lambda: flip("model.safetensors")),
        ("is not the file that was exported", lambda: truncate("decode-b1-w2.options.json")),
        ("cannot be read", lambda: (copy / graph).unlink()),
        ("cannot be read", lambda: (copy / "manifest.json").unlink()),
        ("is not JSON", lambda: truncate("manifest.json")),
        ("format is 99", lambda: edit(lambda m: m.update(format=99))),
        ("is not a bundle's manifest", lambda: edit(lambda m: m.pop("steps"))),
        ("does not list decode-b1-w2.pb", lambda: edit(lambda m: m["files"].pop(graph))),
        ("is not in the bundle's directory", lambda: edit(lambda m: m["files"].update({"../x": "0"}))),
    ]
    for message, damage in damages:
        shutil.copytree(bundle, copy)
        damage()
        with pytest.raises(UserError, match=message):
            read_bundle(copy)
        shutil.rmtree(copy)


@CASES.add(A2)
def an_export_that_fails_leaves_nothing(folder: Path) -> None:
    settings = [*checkpoint(folder), *SERVING, f"export_dir={folder / 'bundle'}"]
    weights = folder / "checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, _, err = command(export, "export", *settings)
    assert status == 2, err
    assert not [path for path in folder.iterdir() if "bundle" in path.name]


if __name__ == "__main__":
    CASES.main()
