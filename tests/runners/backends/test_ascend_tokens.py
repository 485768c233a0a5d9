"""Tokens of the torchair backend through the command line, and of one loaded graph over many steps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import torchair_steps as steps
from support.checkpoints import make_checkpoint, make_model
from support.chip_processes import A2, DUO, ROOT
from support.modelslim import quantized_tensors
from support.standin_commands import answers_in, command, run_infer
from support.token_rule import check_greedy

from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.passes.check import BUCKETS, check_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.printer import count_nodes
from graph_gemma.runners.backends.ascend.provenance import Target, target_of
from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
from graph_gemma.runners.demo.world import demo_prompts, held_out_items, held_out_stories
from graph_gemma.runners.quantize import quantize

HALF, BRAIN = torch.float16, torch.bfloat16


def tokens_follow_transformers(soc: str, folder: Path, dtype: torch.dtype, config: Any, *arguments: str) -> Answers:
    """Prompts beyond one chunk, some sharing their first blocks, are answered as transformers answers them."""
    model = make_checkpoint(folder / "checkpoint", config, dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    shared = torch.randint(3, config.vocab_size, (130,), generator=generator).tolist()
    prompts = [shared, [*shared[:128], 9, 8, 7], [5], [*shared[:64], 11, 12]]
    printed, answers = run_infer(
        folder,
        "backend=torchair",
        f"soc={soc}",
        f"model.path={folder / 'checkpoint'}",
        f"prompt_token_ids={json.dumps(prompts)}",
        "max_prefill_tokens=64",
        "max_prefill_batch_size=1",
        "max_batch_size=3",
        "max_seq_len=256",
        "max_new_tokens=20",
        "ignore_eos=true",
        *arguments,
    )
    assert standin.BANNER in printed, printed
    ties = sum(check_greedy(model, answer["prompt_token_ids"], answer["token_ids"]) for answer in answers)
    assert sum(len(answer["token_ids"]) for answer in answers) == 80
    assert ties <= 1, ties
    return Answers(model, prompts, answers)


@dataclass
class Answers:
    """What was asked of a model, and the answers, which follow the token rule."""

    model: Any
    prompts: list[list[int]]
    answers: list[dict[str, Any]]

    def are_inductors(self, folder: Path) -> None:
        """But for those that the default backend, which follows the rule too, begins to differ in at a tie."""
        output = folder / "inductor.jsonl"
        dtype = str(self.model.dtype).removeprefix("torch.")
        settings = [f"model.path={folder / 'checkpoint'}", f"dtype={dtype}", f"cache_dir={folder / 'cache'}"]
        settings += [f"prompt_token_ids={json.dumps(self.prompts)}", "max_new_tokens=20", "ignore_eos=true"]
        settings += [
            "max_batch_size=1",
            "max_prefill_batch_size=1",
            "max_seq_len=256",
            f"output_file={output}",
            "overwrite=true",
        ]
        command = [sys.executable, str(ROOT / "runners" / "infer.py"), *settings]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert process.returncode == 0, process.stderr
        found = answers_in(output)
        ties = sum(check_greedy(self.model, a["prompt_token_ids"], a["token_ids"]) for a in found)
        pairs = zip(found, self.answers, strict=True)
        differing = sum(a["token_ids"] != b["token_ids"] for a, b in pairs)
        assert differing <= 1, differing
        assert ties <= 1, ties


def every_dump_says_stand_in(dumps: Path, soc: str) -> None:
    """Passes' texts, the listing, and the pbtxt, which keeps it when it is read."""
    assert len(list(dumps.glob("*/*"))) > 30
    for path in dumps.glob("*/*"):
        assert standin.BANNER in "".join(path.read_text().splitlines(keepends=True)[:4]), path
    graph = read_graph_file(dumps / "decode-b1-w4" / "lowered.pbtxt")
    assert target_of(graph) == Target(soc, standin.BANNER)
    assert count_nodes(graph).by_type["GemmaRmsNorm"] == 5


@pytest.mark.chip(A2)
def test_tokens_in_bfloat16_follow_transformers(tmp_path: Path) -> None:
    tokens_follow_transformers(A2, tmp_path, BRAIN, steps.BASE, "block_size=64", f"dump_dir={tmp_path / 'dump'}")
    listing = (tmp_path / "dump" / "extend-b1-t64-w4" / "lowered.txt").read_text()
    assert standin.BANNER in listing
    assert "attention: FusedInferAttentionScore, block_size 64 is not a multiple of 128" in listing
    every_dump_says_stand_in(tmp_path / "dump", A2)


@pytest.mark.chip(A2)
def test_tokens_with_paging_in_every_phase_follow_transformers(tmp_path: Path) -> None:
    """A first chunk over two blocks, prefix hits, decode."""
    blocks = ("block_size=128", "max_prefill_tokens=192")
    tokens_follow_transformers(A2, tmp_path, HALF, steps.BIASED, *blocks, f"dump_dir={tmp_path / 'dump'}")
    listings = {path.parent.name.split("-")[0]: path.read_text() for path in tmp_path.glob("dump/*/lowered.txt")}
    assert listings.keys() == {"prefill", "extend", "decode"}
    for listing in listings.values():
        assert "attention: FusedInferAttentionScore, paged, block_size 128" in listing


@pytest.mark.chip(A2)
def test_tokens_of_windows_and_softcaps_follow_transformers(tmp_path: Path) -> None:
    """Windows of 24 keys, over chunks of 64 tokens and prompts of 130."""
    for name, config in (("gemma2", steps.GEMMA2), ("gemma3", steps.GEMMA3)):
        (tmp_path / name).mkdir()
        tokens_follow_transformers(A2, tmp_path / name, HALF, config, "block_size=16")


@pytest.mark.slow
@pytest.mark.chip
@pytest.mark.parametrize(
    ("soc", "config", "dtype", "arguments"),
    [
        pytest.param(A2, steps.UNTIED, HALF, ["norm=fused"], id="untied head and fused norms"),
        pytest.param(A2, steps.GROUPED, BRAIN, ["block_size=16"], id="grouped wide heads and blocks of 16"),
        pytest.param(A2, steps.GEMMA2, HALF, ["norm=fused"], id="gemma2 and fused norms"),
        pytest.param(A2, steps.GEMMA3, HALF, ["norm=fused", "block_size=128"], id="gemma3 and fused norms"),
        pytest.param(DUO, steps.GEMMA2, HALF, [], id="gemma2 on the DUO"),
        pytest.param(DUO, steps.GEMMA3, HALF, ["block_size=16"], id="gemma3 on the DUO"),
        pytest.param(DUO, steps.DECOMPOSED, HALF, [], id="decomposed decode"),
        pytest.param(DUO, steps.GROUPED, HALF, [], id="folded decode"),
        pytest.param(DUO, steps.ONE_TO_ONE, HALF, [], id="one-to-one heads"),
        pytest.param(DUO, steps.UNTIED, HALF, ["norm=fused"], id="untied head and fused norms on the DUO"),
    ],
)
def test_tokens_equal_those_of_transformers_and_inductor(
    soc: str, config: GemmaConfig, dtype: torch.dtype, arguments: list[str], tmp_path: Path
) -> None:
    tokens_follow_transformers(soc, tmp_path, dtype, config, *arguments).are_inductors(tmp_path)


@pytest.mark.chip(DUO)
def test_tokens_on_the_duo_follow_transformers(tmp_path: Path) -> None:
    tokens_follow_transformers(DUO, tmp_path, HALF, steps.BASE, "block_size=64", f"dump_dir={tmp_path / 'dump'}")
    listing = (tmp_path / "dump" / "decode-b1-w4" / "lowered.txt").read_text()
    assert "attention: IncreFlashAttention, paged; 4 query heads per key head" in listing


@pytest.mark.chip(A2)
def test_sampling_gives_the_tokens_of_eager(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", steps.BASE, dtype=HALF)
    settings = [f"model.path={tmp_path / 'checkpoint'}", "prompt_token_ids=[[5,6,7],[9,3]]", "max_new_tokens=20"]
    settings += ["sampling.temperature=0.8", "sampling.top_k=20", "sampling.top_p=0.9", "max_seq_len=128"]
    settings += ["max_batch_size=2", "max_prefill_batch_size=1"]
    _, expected = run_infer(tmp_path, *settings, "backend=eager")
    _, found = run_infer(tmp_path, *settings, "backend=torchair")
    assert [a["token_ids"] for a in found] == [a["token_ids"] for a in expected]


@pytest.mark.chip(A2)
def test_an_int8_cache_gives_the_tokens_of_eager(tmp_path: Path) -> None:
    """In a first chunk, later chunks and decode; the second prompt finds the first's blocks."""
    story = held_out_stories(1)[0]
    prompts = [f"{story}\n\n{demo_prompts()[-1]}", f"{story} One day", demo_prompts()[-1]]
    settings = [
        f"prompts={json.dumps(prompts)}",
        "max_new_tokens=12",
        "max_seq_len=256",
        "block_size=32",
        "dtype=float16",
    ]
    settings += [
        "max_prefill_tokens=64",
        "max_prefill_batch_size=1",
        "max_batch_size=2",
        "quant=kv8",
        "ignore_eos=true",
    ]
    _, expected = run_infer(tmp_path, *settings, "backend=eager")
    dump = tmp_path / "dump"
    _, found = run_infer(tmp_path, *settings, "backend=torchair", f"dump_dir={dump}")
    assert [a["token_ids"] for a in found] == [a["token_ids"] for a in expected]
    assert {path.name.split("-")[0] for path in dump.iterdir()} == {"prefill", "extend", "decode"}
    assert "int8 cache" in next(dump.glob("decode-*/lowered.txt")).read_text()


def quantized_demo_follows_the_cpu(folder: Path, backend: str, *on_chip: str) -> str:
    """What README writes: quantize.py, then infer.py on what it wrote. Answers are sure, so no token is a near tie.

    on_chip: further settings of the run on the stand-in. Returns what it printed.
    """
    items = held_out_items(12)
    target = folder / "quantized"
    assert command(quantize, "quantize", f"output_dir={target}")[0] == 0
    settings = [f"model.path={target}", "max_new_tokens=5", "max_seq_len=128", "max_batch_size=4"]
    settings += [f"prompts={json.dumps([item.prompt for item in items])}", "max_prefill_batch_size=1"]
    _, expected = run_infer(folder, *settings, f"backend={backend}")
    printed, found = run_infer(folder, *settings, "backend=torchair", *on_chip)
    assert [a["token_ids"] for a in found] == [a["token_ids"] for a in expected]
    assert [a["text"] for a in found] == [" yes" if item.answer else " no" for item in items]
    return printed


@pytest.mark.chip(A2)
def test_quantized_demo_as_by_reference_kernels(tmp_path: Path) -> None:
    quantized_demo_follows_the_cpu(tmp_path, "eager")


@pytest.mark.slow
@pytest.mark.chip(A2)
def test_quantized_demo_as_by_inductor(tmp_path: Path) -> None:
    quantized_demo_follows_the_cpu(tmp_path, "inductor")


@pytest.mark.chip(DUO)
def test_quantized_demo_on_the_duo(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    quantized_demo_follows_the_cpu(tmp_path, "eager", f"soc={DUO}", "dtype=float16", f"dump_dir={dump}")
    listing = next(dump.glob("decode-*/lowered.txt")).read_text()
    assert "QuantBatchMatmulV3" in listing
    assert "# soc atlas_300i_duo" in listing


@pytest.mark.chip(A2)
def test_quantizing_kernels_keep_their_bounds_on_integers() -> None:
    """With an int8 cache, whose attention is selected too."""
    for dtype, scheme in ((HALF, "w8a8"), (BRAIN, "w8a8_dynamic")):
        step = steps.StepCase(steps.BASE, dtype, 64, "decode", "exact", scheme, kv8=True)
        passes = [*(cls() for cls in DEFAULT_PASSES), *kernel_passes(AscendOptions(find_soc(A2), "exact"))]
        weights: dict[str, Any] = make_model(step.config, dtype=dtype).state_dict()
        assert step.quantization is not None
        if step.quantization.stored:
            weights = quantized_tensors(weights, step.quantization.linears, scheme, dtype).tensors
        read = weights.__getitem__
        comparisons = check_passes(step.config, dtype, passes, read, BUCKETS[1:3], step.quantization)
        found = [c.integers for c in comparisons if c.graph_pass.name == "ascend_quant" and c.integers is not None]
        assert len(found) == 2
        assert all(integers.max_lsb == 1 and 0 < integers.share <= 0.2 for integers in found), found
        assert sum(c.graph_pass.name == "ascend_int8_attention" for c in comparisons) == 2
