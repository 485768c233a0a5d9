"""What is measured of a batch, its summary and its rows; the bandwidth that it is held against."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from support.configs import TINY_CONFIGS

from graph_gemma.runners.benchmarking.bandwidth import ReadProbe, spread
from graph_gemma.runners.benchmarking.engine_runner import EngineRunner, warm_up
from graph_gemma.runners.benchmarking.results import AVERAGES, RATE, STEP_RATE, Row, cells_of
from graph_gemma.runners.benchmarking.runner import Facts
from graph_gemma.runners.benchmarking.timing import Case, Timing, equal_share, random_prompts, summarize
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM

CONFIG = TINY_CONFIGS["one_kv_head"]
FACTS = Facts("bfloat16", weight_bytes=5_000_000, step_bytes=4_000_000, token_bytes={None: 100}, details="")


def timing(first: float, steps: list[float], **more: int) -> Timing:
    return Timing(first + sum(steps), [first], first, steps, **more)


def test_medians_and_spread_over_repeats() -> None:
    timings = [timing(1.0, [0.1, 0.2, 0.3]), timing(3.0, [0.4, 0.5, 0.6]), timing(2.0, [0.7, 0.8, 0.9])]
    summary = summarize(Case(1, 1, 4), timings)
    assert summary.first_s == 2.0
    assert summary.first_range_s == (1.0, 3.0)
    assert summary.step_s == 0.5
    assert summary.step_range_s == (0.2, 0.8)
    assert summary.total_s == pytest.approx(4.4)
    assert summary.step_percentiles_s == pytest.approx((0.5, 0.82, 0.892))
    assert summary.note == ""


def test_a_batch_that_never_was_full_has_no_step_time() -> None:
    partial = Timing(2.0, [0.5, 1.0], 1.0, [], partial_steps=3)
    summary = summarize(Case(2, 4, 3), [partial, partial])
    assert summary.step_s is None
    assert summary.first_s == 1.0
    assert summary.first_mean_s == 0.75
    assert summary.note == "the batch was never full"
    # An answer of one token has no further steps to miss.
    assert summarize(Case(1, 4, 1), [timing(1.0, [])]).note == ""


def test_preemptions_are_noted() -> None:
    assert summarize(Case(1, 1, 2), [timing(1.0, [0.1], preemptions=2)] * 2).note == "4 preemptions"


def test_equal_tokens_are_counted_up_to_the_first_difference() -> None:
    case = Case(2, 1, 4)
    assert equal_share(case, [[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 0, 7, 8]]) == 5 / 8


def row(runner: str, case: Case, step_s: float, facts: Facts = FACTS, number: int = 1) -> Row:
    summary = summarize(case, [timing(0.1, [step_s] * (case.answer - 1))])
    return Row("tiny", runner, summary, facts, (8e9, 7e9, 9e9), 10_000_000, round=number)


def test_each_runner_is_compared_by_the_bytes_it_reads() -> None:
    case = Case(2, 10, 4)
    ours, int8 = row("ours", case, 0.001), row("peer", case, 0.001, dataclasses.replace(FACTS, step_bytes=2_000_000))
    # 4 MB of weights, and 100 bytes for each of 12 tokens of 2 requests, in a millisecond.
    assert ours.achieved == pytest.approx(4.0024e9)
    assert ours.share_of_bound == pytest.approx(4.0024 / 8)
    assert int8.achieved == pytest.approx(2.0024e9)
    cells = int8.cells()
    assert cells["Step reads(MB)"] == "2.002"
    assert cells["Peak / weights"] == "2.00"
    assert float(cells["Share of bound"]) == pytest.approx(0.25, abs=0.001)


def test_layers_with_a_window_read_no_more_than_it() -> None:
    facts = dataclasses.replace(FACTS, token_bytes={None: 100, 8: 10, 50: 1})
    assert facts.decode_step_bytes(Case(2, 10, 4)) == 4_000_000 + 2 * (12 * 100 + 8 * 10 + 12 * 1)


def test_the_last_row_of_a_runner_and_batch_has_its_averages() -> None:
    rows = [row(name, Case(1, 8, answer), step) for answer, step in ((3, 0.1), (5, 0.2)) for name in ("ours", "peer")]
    cells = cells_of([*rows, row("ours", Case(4, 8, 3), 0.5)])
    assert [bool(cell[AVERAGES[0]]) for cell in cells] == [False, False, True, True, True]
    assert float(cells[2][AVERAGES[0]]) == pytest.approx((10 + 5) / 2, abs=0.01)
    assert float(cells[2][AVERAGES[1]]) == pytest.approx((float(cells[0][RATE]) + float(cells[2][RATE])) / 2, abs=0.01)
    assert cells[4][AVERAGES[0]] == cells[4][STEP_RATE]


def test_the_probe_reads_its_array_no_faster_than_memory() -> None:
    probe = ReadProbe("cpu", threads=2, num_bytes=64 << 20)
    assert probe.read() == (64 << 20) / 4  # the sum of as many ones
    median, low, high = spread(probe.measure())
    assert 1e7 < low <= median <= high < 2e12
    probe.close()


def test_only_steps_of_the_whole_batch_count_after_first_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """One prompt fits a step, so the first requests decode while the last are computed."""
    settings = [f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}", "block_size=16"]
    with LLM([*settings, "max_prefill_tokens=64", "max_batch_size=4"]) as llm:
        case = Case(4, 60, 12)
        found = EngineRunner(llm).run(random_prompts(case, CONFIG.vocab_size, 0), case.answer)
        assert found.first_s == sorted(found.first_s)
        assert len(set(found.first_s)) == 4
        assert found.partial_steps >= 3
        assert 0 < len(found.step_s) <= case.answer - 1 - 3
        assert found.prefill_s < max(found.first_s)  # which has the steps of the early requests in it
        assert max(found.first_s) + sum(found.step_s) < found.total_s
        assert [len(answer) for answer in found.answers] == [12] * 4
        # Four requests at once with answers so short that the first has ended before the last begins.
        short = EngineRunner(llm).run(random_prompts(Case(4, 60, 2), CONFIG.vocab_size, 1), 2)
        assert short.step_s == []
        assert summarize(Case(4, 60, 2), [short]).note == "the batch was never full"


@pytest.mark.parametrize("num_blocks", ["null", "32"], ids=["room for all", "preemptions"])
def test_warm_up_compiles_the_steps_of_the_cases_and_no_others(
    num_blocks: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Prompts longer than a step, of which several are in the batch while others wait."""
    settings = [f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}", "block_size=16"]
    cases = [Case(4, 100, 40), Case(1, 20, 40)]
    with LLM(
        [*settings, "max_seq_len=160", "max_prefill_tokens=64", "max_batch_size=4", f"num_blocks={num_blocks}"]
    ) as llm:
        warm_up(llm, cases)
        model, runner = llm.loaded.model, EngineRunner(llm)
        compiled = model.report.compiled
        preemptions = 0
        with patch.object(model, "run", wraps=model.run) as run:
            for repeat in range(3):
                for case in cases:
                    found = runner.run(random_prompts(case, CONFIG.vocab_size, 10 + repeat), case.answer)
                    preemptions += found.preemptions
        assert model.report.compiled == compiled == len({call.args[0] for call in run.call_args_list})
        assert (preemptions > 0) == (num_blocks == "32")


def test_a_step_reads_parameters_once_and_each_context(checkpoint: Path, tmp_path: Path) -> None:
    case = Case(batch=2, prompt=70, answer=6)
    with LLM([f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}"]) as llm:
        llm.warm_up([[2] * 70], SamplingParams(max_new_tokens=6))
        read = EngineRunner(llm).facts.decode_step_bytes(case)
    from graph_gemma.graph_model.footprint import num_parameters

    context = 2 * CONFIG.num_hidden_layers * CONFIG.num_key_value_heads * CONFIG.head_dim * (70 + 3)
    assert read == pytest.approx(4 * (num_parameters(CONFIG) + 2 * context), rel=0.02)


def test_a_step_with_an_int8_head_reads_no_whole_embedding(checkpoint: Path, tmp_path: Path) -> None:
    c = CONFIG
    assert c.tie_word_embeddings
    attention = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim * c.hidden_size
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    int8 = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size
    settings = [f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path}", "quant=w8a16"]
    with LLM(settings) as llm:
        llm.warm_up([[2] * 8], SamplingParams(max_new_tokens=2))
        facts = EngineRunner(llm).facts
    assert int8 < facts.step_bytes < 1.2 * int8  # besides the matrices: scales and norms
    assert facts.weight_bytes > facts.step_bytes
    assert facts.precision == "float32 w8a16"


def test_prompts_depend_on_their_seed_alone() -> None:
    case = Case(2, 8, 1)
    assert random_prompts(case, 100, 3) == random_prompts(case, 100, 3)
    assert random_prompts(case, 100, 3) != random_prompts(case, 100, 4)
    assert torch.tensor(random_prompts(case, 100, 3)).shape == (2, 8)
