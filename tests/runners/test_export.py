"""runners/export.py over the stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chip_processes import A2, ROOT
from support.standin_commands import PROMPTS, SERVING, checkpoint, command

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.bundle import read_bundle
from graph_gemma.runners.backends.ascend.exported_model import ExportedModel
from graph_gemma.runners.engine.driver import EngineDriver as EngineLLM
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.export import export
from graph_gemma.runners.infer import infer

LOAD = """
import json, sys
import graph_gemma.graph_model
from pathlib import Path
from graph_gemma.runners.backends.ascend.bundle import read_bundle
from graph_gemma.runners.backends.ascend.exported_model import ExportedModel
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.sampling_params import SamplingParams
llm = EngineDriver(ExportedModel(read_bundle(Path(sys.argv[1]))))
results = llm.generate(json.loads(sys.argv[2]), SamplingParams(max_new_tokens=6, ignore_eos=True))
unwanted = {"torch_npu", "torchair", "graph_gemma.passes"}
unwanted |= {"graph_gemma.graph_model.capture", "graph_gemma.graph_model.families.definition"}
assert not unwanted & set(sys.modules)
print(json.dumps([result.token_ids for result in results]))
"""


@pytest.mark.chip(A2)
def test_an_exported_model_gives_its_origins_tokens(tmp_path: Path) -> None:
    settings = [*checkpoint(tmp_path), *SERVING]
    bundle = tmp_path / "bundle"
    status, out, err = command(export, "export", *settings, f"export_dir={bundle}")
    assert status == 0, err
    for name in ("decode-b1-w2", "extend-b1-t64-w2", "prefill-b1-t64"):
        assert f"{name}.pb" in out
    generate = [f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6", "ignore_eos=true", "backend=torchair"]
    assert command(infer, "infer", *settings, *generate, f"output_file={tmp_path / 'answers'}")[0] == 0
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
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
    refuse_damaged_bundles(bundle, tmp_path / "damaged")


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


@pytest.mark.chip(A2)
def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    settings = [*checkpoint(tmp_path), *SERVING, f"export_dir={tmp_path / 'bundle'}"]
    weights = tmp_path / "checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, _, err = command(export, "export", *settings)
    assert status == 2, err
    assert not [path for path in tmp_path.iterdir() if "bundle" in path.name]
