"""runners/export.py over chips, dtypes, quantization and sampling: what was exported gives the same tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO
from support.standin_commands import PROMPTS, SERVING, TINY, checkpoint, command

from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.bundle import read_bundle
from graph_gemma.runners.backends.ascend.exported_model import ExportedModel
from graph_gemma.runners.backends.ascend.printer import list_graph
from graph_gemma.runners.backends.ascend.provenance import Target, target_of
from graph_gemma.runners.engine.driver import EngineDriver as EngineLLM
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.export import export
from graph_gemma.runners.infer import infer
from graph_gemma.runners.llm import sizes


def round_trip(folder: Path, soc: str, dtype: torch.dtype, *settings: str, config: GemmaConfig = TINY) -> None:
    """What was exported gives, loaded back, the tokens of serving under the same settings; greedy and sampled."""
    sample = "sample=true" in settings
    name = str(dtype).removeprefix("torch.")
    shared = [*checkpoint(folder, config), *SERVING, f"soc={soc}", f"dtype={name}"]
    shared += [setting for setting in settings if setting != "sample=true"]
    bundle, output = folder / "bundle", folder / "answers"
    with pytest.MonkeyPatch.context() as patch:  # the cache has the size that the chip has room for
        patch.setattr(sizes, "free_memory", lambda device, processes: 0)
        status, _, err = command(export, "export", *shared, f"export_dir={bundle}", f"sample={str(sample).lower()}")
    assert status == 0, err
    exported = read_bundle(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["soc"]["name"], manifest["dtype"]) == (soc, name)
    assert {bucket.selection for bucket in exported.steps} == ({"greedy", "sample"} if sample else {"greedy"})
    for bucket in exported.steps:
        graph = exported.graph(bucket)
        assert target_of(graph) == Target(soc, standin.BANNER)
        assert list_graph(read_graph_file(bundle / f"{bucket}.pbtxt")) == list_graph(graph)
    model = EngineLLM(ExportedModel(exported))
    chosen = [SamplingParams(max_new_tokens=6, ignore_eos=True)]
    if sample:
        chosen.append(replace(chosen[0], temperature=0.9, top_k=30, seed=5))
    found: list[list[list[int]]] = []
    for params in chosen:
        generate = [f"prompt_token_ids={json.dumps(PROMPTS)}", "max_new_tokens=6", "ignore_eos=true"]
        generate += ["backend=torchair", f"sampling.temperature={params.temperature}", f"sampling.top_k={params.top_k}"]
        generate += [f"sampling.seed={params.seed}"] if params.seed is not None else []
        status, _, err = command(infer, "infer", *shared, *generate, f"output_file={output}", "overwrite=true")
        assert status == 0, err
        answers = sorted(map(json.loads, output.read_text().splitlines()), key=lambda answer: answer["index"])
        seeds = [None if params.seed is None else params.seed + index for index in range(len(PROMPTS))]
        results = [model.generate([ids], replace(params, seed=s))[0] for ids, s in zip(PROMPTS, seeds, strict=True)]
        found.append([result.token_ids for result in results])
        assert found[-1] == [answer["token_ids"] for answer in answers]
    assert len(found) == 1 or found[0] != found[1]


@pytest.mark.slow
@pytest.mark.chip(DUO)
def test_an_export_for_the_duo_gives_the_same_tokens(tmp_path: Path) -> None:
    round_trip(tmp_path, DUO, torch.float16)


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_a_quantized_sampling_export_gives_the_same_tokens(tmp_path: Path) -> None:
    round_trip(tmp_path, A2, torch.bfloat16, "sample=true", "quant=w8a8_dynamic")


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_a_w8a16_export_gives_the_same_tokens(tmp_path: Path) -> None:
    round_trip(tmp_path, A2, torch.float16, "quant=w8a16")


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_an_export_of_layers_with_a_window_gives_the_same_tokens(tmp_path: Path) -> None:
    """A prompt of 77 tokens in two chunks, through a window of 24: blocks fall out of it before the second one."""
    round_trip(tmp_path, A2, torch.float16, "block_size=16", config=steps.GEMMA3)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["serving"]["window"] == 24
    assert manifest["serving"]["num_window_blocks"] > manifest["serving"]["num_scratch_blocks"]
