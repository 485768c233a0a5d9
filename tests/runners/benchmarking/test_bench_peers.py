"""Peers read our weights: in float32 their tokens are ours, or as likely. Those that are not installed are skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint, make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.benchmarking import peer_registry as peers
from graph_gemma.runners.benchmarking.peer_registry import PeerJob
from graph_gemma.runners.benchmarking.peers.weights import write_weights
from graph_gemma.runners.benchmarking.timing import Case, equal_share, random_prompts
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.llm.random_weights import random_weights
from graph_gemma.runners.settings.model_settings import resolve_settings

CASE = Case(batch=3, prompt=20, answer=8)
BEYOND = Case(batch=3, prompt=60, answer=8)  # the windows of LATER_CONFIGS
# Rows of a multiple of 32 numbers, as llama.cpp's int8 wants them.
CONFIG = replace(TINY_CONFIGS["grouped_kv_heads"], hidden_size=64, intermediate_size=128)


def job(tmp_path: Path, name: str, *overrides: str, case: Case = CASE) -> PeerJob:
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    settings = compose("infer", [f"model.path={weights}", "backend=eager", f"cache_dir={cache}", *overrides])
    return PeerJob(resolve_settings(settings), weights, tmp_path / name, (case,), threads=1)


def started(name: str, job: PeerJob) -> peers.Runner:
    for package in peers.PEERS[name].packages:
        pytest.importorskip(package)
    if peers.PEERS[name].converts:
        peers.convert(name, job)
    return peers.start(name, job)


def assert_likeliest(config: GemmaConfig, prompt: list[int], answer: list[int], rounding: float) -> None:
    """Each token's logit behind the answer's own prefix is the largest but for `rounding`, relative to the largest."""
    with torch.no_grad():
        logits = make_model(config)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    assert (logits.amax(-1) - chosen <= rounding * logits.abs().amax(-1)).all()


@pytest.mark.parametrize(
    "config", [CONFIG, replace(TINY_CONFIGS["wide_heads"], hidden_size=64)], ids=["grouped", "wide"]
)
@pytest.mark.parametrize("name", ["floating_point", "transformers", "llama_cpp", "openvino", "ctranslate2"])
def test_tokens_of_peers_are_ours(name: str, config: GemmaConfig, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "original", config)
    settings = [f"model.path={tmp_path / 'original'}", "backend=eager", f"cache_dir={tmp_path / 'cache'}"]
    write_weights(resolve_settings(compose("infer", settings)), tmp_path / "weights")
    runner = started(name, job(tmp_path, name))
    prompts = random_prompts(CASE, config.vocab_size, 0)
    timing = runner.run(prompts, CASE.answer)
    with LLM(settings) as llm:
        results = llm.generate(prompts, SamplingParams(max_new_tokens=CASE.answer, ignore_eos=True))
    if name == "llama_cpp":  # its GELU is a table of float16 numbers
        for prompt, answer in zip(prompts, timing.answers, strict=True):
            assert_likeliest(config, prompt, answer, rounding=2.0**-10)
    else:
        assert equal_share(CASE, [result.token_ids for result in results], timing.answers) == 1.0
    assert len(timing.step_s) == CASE.answer - 1
    assert len(timing.first_s) == CASE.batch
    assert timing.total_s == pytest.approx(max(timing.first_s) + sum(timing.step_s))
    assert runner.run(prompts, CASE.answer).answers == timing.answers  # nothing is left of the run before


@pytest.mark.parametrize("family", LATER_CONFIGS)
@pytest.mark.parametrize(
    "name", ["transformers", pytest.param("transformers_compiled", marks=pytest.mark.slow), "llama_cpp"]
)
def test_later_families_are_run_as_we_do(name: str, family: str, tmp_path: Path) -> None:
    """Not as a Gemma 1 whose other weights are made anew, and with windows that prompts do not fit in."""
    config = LATER_CONFIGS[family]
    if name == "llama_cpp":
        config = replace(config, query_pre_attn_scalar=config.head_dim)  # type: ignore[call-arg]
    make_checkpoint(tmp_path / "original", config)
    settings = [f"model.path={tmp_path / 'original'}", "backend=eager", f"cache_dir={tmp_path / 'cache'}"]
    write_weights(resolve_settings(compose("infer", settings)), tmp_path / "weights")
    prompts = random_prompts(BEYOND, config.vocab_size, 0)
    timing = started(name, job(tmp_path, name, case=BEYOND)).run(prompts, BEYOND.answer)
    with LLM(settings) as llm:
        results = llm.generate(prompts, SamplingParams(max_new_tokens=BEYOND.answer, ignore_eos=True))
    assert equal_share(BEYOND, [result.token_ids for result in results], timing.answers) == 1.0


@pytest.mark.parametrize("family", LATER_CONFIGS)
def test_llama_cpp_reads_long_prompts_in_parts(family: str, tmp_path: Path) -> None:
    """Its caches of layers with windows then hold the last part and the window before it."""
    case = Case(batch=2, prompt=1100, answer=4)
    config = replace(LATER_CONFIGS[family], query_pre_attn_scalar=16, max_position_embeddings=2048)  # type: ignore[call-arg]
    make_checkpoint(tmp_path / "weights", config)
    prompts = random_prompts(case, config.vocab_size, 0)
    timing = started("llama_cpp", job(tmp_path, "llama_cpp", "max_seq_len=1200", case=case)).run(prompts, case.answer)
    for prompt, answer in zip(prompts, timing.answers, strict=True):
        assert_likeliest(config, prompt, answer, rounding=2.0**-10)


def test_float32_is_what_llama_cpp_attends_in(tmp_path: Path) -> None:
    """Its flash attention sums values in float16 in a decode step, of which a mean over many has few digits left."""
    model = make_checkpoint(tmp_path / "weights", CONFIG)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()  # every token sees the mean of all
    model.save_pretrained(tmp_path / "weights")
    prompt = [3] * 480
    runner = started("llama_cpp", job(tmp_path, "llama_cpp", case=Case(1, len(prompt), 2)))
    answer = runner.run([prompt], 2).answers[0]
    logits = runner._api.llama_get_logits_ith(runner._context, 0)
    with torch.no_grad():
        expected = model(torch.tensor([prompt + answer[:1]])).logits[0, -1]
    error = (torch.tensor(logits[: CONFIG.vocab_size]) - expected).abs().amax() / expected.abs().amax()
    assert error < 2.0**-10


def test_llama_cpp_reads_no_embedding_that_is_not_the_head(tmp_path: Path) -> None:
    config = replace(LATER_CONFIGS["gemma3"], query_pre_attn_scalar=16, tie_word_embeddings=False)  # type: ignore[call-arg]
    make_checkpoint(tmp_path / "weights", config)
    facts = started("llama_cpp", job(tmp_path, "llama_cpp")).facts
    assert facts.weight_bytes - facts.step_bytes == 4 * config.vocab_size * config.hidden_size
    assert facts.token_bytes == {24: 2 * 2 * 16 * 4, None: 2 * 16 * 4}


@pytest.mark.parametrize("family", LATER_CONFIGS)
def test_attention_is_full_in_every_layer_of_that_peer(family: str, tmp_path: Path) -> None:
    """As transformers computes a model whose layers are said to be full."""
    config = LATER_CONFIGS[family]
    make_checkpoint(tmp_path / "weights", config)
    runner = started("full_attention", job(tmp_path, "full_attention", case=BEYOND))
    full = replace(config, layer_types=("full_attention",) * config.num_hidden_layers)  # type: ignore[call-arg]
    make_checkpoint(tmp_path / "full", full)  # the same weights
    prompts = random_prompts(BEYOND, config.vocab_size, 0)
    found = runner.run(prompts, BEYOND.answer).answers
    expected, windowed = (
        started("transformers", replace(job(tmp_path, "transformers"), directory=tmp_path / name))
        .run(prompts, BEYOND.answer)
        .answers
        for name in ("full", "weights")
    )
    assert found == expected != windowed
    assert runner.facts.token_bytes.keys() == {None}
    assert peers.unsuited("full_attention", CONFIG)


@pytest.mark.parametrize("name", ["openvino", "ctranslate2"])
def test_peers_that_know_gemma_1_alone_say_so(name: str) -> None:
    assert not peers.unsuited(name, CONFIG)
    reason = peers.unsuited(name, LATER_CONFIGS["gemma3"])
    assert reason == "it is built for model_type gemma only, and the model is a gemma3_text"


@pytest.mark.parametrize(("name", "bytes_per_weight"), [("llama_cpp", 34 / 32), ("openvino", 1), ("ctranslate2", 1)])
def test_int8_peers_hold_int8_weights_and_mostly_agree(name: str, bytes_per_weight: float, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "weights", CONFIG)
    runner = started(name, job(tmp_path, name, "quant=w8a16"))
    prompts = random_prompts(CASE, CONFIG.vocab_size, 0)
    float_runner = started("transformers", job(tmp_path, "transformers"))
    expected = [answer[:1] for answer in float_runner.run(prompts, 2).answers]
    found = [answer[:1] for answer in runner.run(prompts, 2).answers]
    assert sum(a == b for a, b in zip(expected, found, strict=True)) >= 2
    assert "int8" in runner.facts.precision or "Q8_0" in runner.facts.precision
    floats = float_runner.facts.weight_bytes
    assert floats / 4 * bytes_per_weight < runner.facts.weight_bytes < floats / 2.5


def test_the_weights_of_peers_are_the_random_ones_of_ours(tmp_path: Path) -> None:
    settings = resolve_settings(compose("infer", ["model=gemma_2b", "weights=random", "dtype=float16"]))
    small = replace(CONFIG, dtype="bfloat16")
    write_weights(replace(settings, config=small), tmp_path / "weights")
    transformers = import_transformers()
    model = transformers.GemmaForCausalLM.from_pretrained(tmp_path / "weights", dtype=torch.float16)
    read = random_weights(small)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, read(name).to(torch.float16)), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "weights")
    assert len(tokenizer) == CONFIG.vocab_size
