"""Sharding as a pass: what each rank gets, the collectives, and tokens equal to those of the whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.checkpoints import make_model
from support.configs import LATER_CONFIGS, TINY_CONFIGS
from support.graphs import BUCKETS, QUANTIZED_CASES, Case, count
from support.models import build_model
from support.ranks import part_reader, run_ranks
from torch import Tensor

from graph_gemma.graph_model.bucket import BucketTable
from graph_gemma.graph_model.config import GEMMA_2B, GEMMA_7B, GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.footprint import num_parameters
from graph_gemma.graph_model.graph import ModelGraph
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.tensor_parallel import WHOLE, Shard, check_world_size, legal_world_sizes
from graph_gemma.graph_model.weights import Constant, PaddingMask, evaluate
from graph_gemma.graph_model.weights.expressions import from_json, to_json
from graph_gemma.passes.check import Comparison, PassChecker
from graph_gemma.passes.framework.contract import Pass
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES, build_passes
from graph_gemma.runners.backends.eager import EagerBackend
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.engine.scoring import ScoreRequest

SETTINGS: dict[str, dict[str, bool]] = {cls.name: {} for cls in DEFAULT_PASSES}
BIASED = Case(replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2), torch.float32)  # two key heads
# Neither 2 nor 3 divides the vocabulary: the last rank's part is filled up.
ODD = replace(TINY_CONFIGS["odd_vocabulary"], num_hidden_layers=1, num_attention_heads=6, tie_word_embeddings=False)
ONE_KV_HEAD = Case(replace(TINY_CONFIGS["one_kv_head"], num_hidden_layers=1), torch.float32)


def shard_graph(case: Case, bucket: str, shard: Shard) -> ModelGraph:
    graph = case.captured(bucket)
    run_passes(graph, build_passes(SETTINGS, shard))
    return graph


def test_a_rank_has_its_parts_and_two_collectives_per_layer() -> None:
    graph = shard_graph(BIASED, "decode", Shard(1, 2))
    plan = {name: str(expression) for name, expression in graph.weight_plan.items()}
    layer = "model.layers.0.self_attn"
    assert plan["p_model_layers_0_self_attn_qkv_proj_weight"] == (
        f"cat({layer}.q_proj.weight[32:64], {layer}.k_proj.weight[16:32], {layer}.v_proj.weight[16:32])"
    )
    assert plan["p_model_layers_0_self_attn_o_proj_weight_part"] == f"{layer}.o_proj.weight[:, 32:64]"
    assert f"{layer}.o_proj.bias" in plan.values()
    assert list(plan.values()).count("model.embed_tokens.weight[128:256]") == 1  # read by embedding and head
    calls = count(graph)
    assert calls["gemma.all_reduce"] == 2 * BIASED.config.num_hidden_layers + 1
    assert (calls["gemma.all_gather"], calls["gemma.sharded_greedy_token"]) == (0, 1)
    assert {tuple(node.meta["val"].shape) for node in graph.placeholders("cache")} == {(8, 16, 1, 16)}


@pytest.mark.parametrize("case", [BIASED, QUANTIZED_CASES["bfloat16-w8a8-stored"]], ids=["float32", "w8a8"])
def test_all_ranks_have_the_same_graph(case: Case) -> None:
    graphs = [shard_graph(case, "sample", Shard(rank, 2)) for rank in range(2)]
    assert graphs[0].module.code == graphs[1].module.code
    ranks = [[e for e in graph.weight_plan.values() if isinstance(e, Constant)] for graph in graphs]
    assert ranks == [[Constant((0,))], [Constant((1,))]]


@pytest.mark.parametrize(
    ("kv_heads", "world_size", "held"), [(1, 4, [0, 0, 0, 0]), (2, 4, [0, 0, 1, 1]), (4, 2, [0, 2])]
)
def test_key_heads_are_repeated_only_as_far_as_needed(kv_heads: int, world_size: int, held: list[int]) -> None:
    config = replace(TINY_CONFIGS["wide_heads"], num_key_value_heads=kv_heads)
    parts = [Shard(rank, world_size).kv_part(family_of(config).layers[0].attention) for rank in range(world_size)]
    assert [start // config.head_dim for start, _ in parts] == held
    assert {stop - start for start, stop in parts} == {max(1, kv_heads // world_size) * config.head_dim}


def test_the_parts_of_all_ranks_are_the_model() -> None:
    """Summed over the ranks, every parameter is read once, but for those that all ranks hold."""
    whole = num_parameters(BIASED.config)
    hidden, layers = BIASED.config.hidden_size, BIASED.config.num_hidden_layers
    replicated = (2 * layers + 1) * hidden + layers * hidden  # norms and the output bias
    for world_size in (2, 4):
        kv_copies = max(1, world_size // BIASED.config.num_key_value_heads) - 1
        kv = layers * 2 * (hidden + 1) * BIASED.config.num_key_value_heads * BIASED.config.head_dim
        planned = 0
        for rank in range(world_size):
            plan = shard_graph(BIASED, "decode", Shard(rank, world_size)).weight_plan
            of_checkpoint = [e for n, e in plan.items() if n not in ("rank", "inv_freq")]
            planned += sum(torch.Size(expression.shape).numel() for expression in of_checkpoint)
        assert planned == whole + (world_size - 1) * replicated + kv_copies * kv
        assert planned == world_size * num_parameters(BIASED.config, Shard(0, world_size))


@pytest.mark.parametrize(
    ("case", "world_size"),
    [(BIASED, 2), (ONE_KV_HEAD, 4), *((Case(config, torch.float32), 2) for config in LATER_CONFIGS.values())],
    ids=["biased-2", "one_kv_head-4", *(f"{name}-2" for name in LATER_CONFIGS)],
)
def test_every_pass_keeps_its_tier_on_every_rank(case: Case, world_size: int) -> None:
    check_tiers(case, world_size)


def check_tiers(case: Case, world_size: int) -> None:
    steps: dict[int, list[tuple[Pass, ModelGraph, ModelGraph]]] = {rank: [] for rank in range(world_size)}
    for rank, found in steps.items():
        for bucket in (BUCKETS["extend"], BUCKETS["sample"]):
            passes = build_passes(SETTINGS, Shard(rank, world_size))
            # Tracing is for one thread: the graphs are made first, and run by all ranks together.
            run_passes(case.captured(bucket), passes, observe=lambda p, b, a, to=found: to.append((p, b, a.copy())))

    read = part_reader(case.read)

    def check(shard: Shard) -> list[Comparison]:
        checker = PassChecker(read)
        for step in steps[shard.rank]:
            checker(*step)
        return checker.comparisons

    names = Counter(c.graph_pass.name for found in run_ranks(world_size, check) for c in found)
    assert names["shard_tensor_parallel"] == names["shard_token_selection"] == 2 * world_size


def tokens(models: list[CompiledModel], vocab_size: int) -> list[list[list[int]]]:
    """Each rank's answers: greedy, sampled, cut, with prompts in chunks."""
    prompts = [[5 + i, *range(7, 7 + 9 * i)] for i in range(4)]
    sampling = [
        SamplingParams(max_new_tokens=12, ignore_eos=True),
        SamplingParams(temperature=1.0, seed=1, max_new_tokens=12, ignore_eos=True),
        SamplingParams(temperature=0.8, top_k=5, seed=2, max_new_tokens=12, ignore_eos=True),
        SamplingParams(temperature=1.2, top_p=0.7, seed=3, max_new_tokens=12, ignore_eos=True),
    ]

    def answer(shard: Shard) -> list[list[int]]:
        llm = EngineDriver(models[shard.rank], vocab_size=vocab_size)
        return [result.token_ids for result in llm.generate(prompts, sampling)]

    # A run by one rank finds out which steps are needed; others compile them before the threads start.
    return run_ranks(len(models), answer)


def scores(models: list[CompiledModel], vocab_size: int) -> list[list[Tensor]]:
    """Each rank's log-probabilities: of given tokens, in whole texts and behind a context, and of all tokens."""
    text = [5 + i % 90 for i in range(0, 400, 9)]
    requests = [
        ScoreRequest.continuation(text[:1], text[1:]),
        ScoreRequest.continuation(text[:30], text[7:9]),
        ScoreRequest(text[:9], list(range(9))),
    ]

    def score(shard: Shard) -> list[Tensor]:
        found = EngineDriver(models[shard.rank], vocab_size=vocab_size).score(requests)
        return [torch.from_numpy(array) for one in found for array in (one.token_ids, one.logprobs)]

    return run_ranks(len(models), score)


def build(config: GemmaConfig, reference: torch.nn.Module, shard: Shard) -> CompiledModel:
    buckets = BucketTable((4,), (2,), (16,), (4,), 32)
    backend = EagerBackend(torch.device("cpu"))
    return build_model(backend, reference, config, buckets, num_blocks=16, max_seq_len=64, shard=shard)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kv_heads", "world_size"),
    [(2, 4), *(pytest.param(*sizes, marks=SLOW) for sizes in ((1, 2), (1, 4), (2, 2), (4, 2), (4, 4), (4, 8)))],
)
def test_tokens_are_those_of_one_rank(kv_heads: int, world_size: int) -> None:
    heads = max(4, world_size)
    config = replace(
        TINY_CONFIGS["wide_heads"], num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=2
    )
    reference = make_model(config)
    whole = build(config, reference, WHOLE)
    (expected,) = tokens([whole], config.vocab_size)
    models = []
    for rank in range(world_size):
        models.append(build(config, reference, Shard(rank, world_size)))
        models[-1].warm_up(list(whole._loaded))
    for found in tokens(models, config.vocab_size):
        assert found == expected


def test_log_probabilities_are_those_of_one_rank() -> None:
    config = ONE_KV_HEAD.config
    reference = make_model(config)
    whole = build(config, reference, WHOLE)
    (expected,) = scores([whole], config.vocab_size)
    models = [build(config, reference, Shard(rank, 2)) for rank in range(2)]
    for model in models:
        model.warm_up(list(whole._loaded))
    for found in scores(models, config.vocab_size):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_vocabulary_that_does_not_divide_is_filled_up(world_size: int) -> None:
    assert ODD.vocab_size % world_size
    reference = make_model(ODD)
    whole = build(ODD, reference, WHOLE)
    expected_tokens = tokens([whole], ODD.vocab_size)[0]
    expected_scores = scores([whole], ODD.vocab_size)[0]
    models = [build(ODD, reference, Shard(rank, world_size)) for rank in range(world_size)]
    for model in models:
        model.warm_up(list(whole._loaded))
    for found in tokens(models, ODD.vocab_size):
        assert found == expected_tokens
    for found in scores(models, ODD.vocab_size):
        for ours, theirs in zip(found, expected_scores, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)


def test_every_pass_keeps_its_tier_with_a_filled_vocabulary() -> None:
    check_tiers(Case(ODD, torch.float32), 2)


def test_an_int8_head_is_filled_up_too() -> None:
    config = replace(ODD, dtype="float32")
    quantization = Quantization("w8a16", select_linears(config, []))
    graph = Case(config, torch.float32, quantization).captured("sample")
    run_passes(graph, build_passes(SETTINGS, Shard(1, 2)))
    plan = list(graph.weight_plan.values())
    (head,) = [e for e in plan if e.dtype == torch.int8 and e.shape[0] == 126]
    (mask,) = [e for e in plan if isinstance(e, PaddingMask)]
    read = part_reader(Case(config, torch.float32).read)
    tensors = evaluate([head, mask], read, torch.device("cpu"))
    assert tensors[head].shape == (126, config.hidden_size)
    assert not tensors[head][125:].any()
    assert tensors[head][:125].any()
    assert tensors[mask].tolist() == [0.0] * 125 + [-torch.inf]
    assert from_json(to_json(mask)) == mask


def test_weights_of_a_rank_are_read_as_parts() -> None:
    """No tensor that is shared out is asked for as a whole."""
    wholes: list[str] = []
    shared = ("q_proj", "k_proj", "v_proj", "o_proj.weight", "mlp", "embed_tokens", "lm_head")

    def read(name: str, part: tuple[int, int, int] | None = None) -> Tensor:
        if part is None:
            wholes.append(name)
        return part_reader(BIASED.read)(name, part)

    evaluate(shard_graph(BIASED, "decode", Shard(0, 2)).weight_plan.values(), read, torch.device("cpu"))
    assert not [name for name in wholes if any(f".{module}" in name for module in shared)]


def test_world_sizes_that_do_not_fit_are_refused() -> None:
    assert legal_world_sizes(GEMMA_2B) == [1, 2, 4, 8]
    assert legal_world_sizes(GEMMA_7B) == [1, 2, 4, 8, 16]
    with pytest.raises(UserError, match=r"num_attention_heads 8 is not a multiple of it\. .* 1, 2, 4, 8\."):
        check_world_size(GEMMA_2B, 3)
    check_world_size(TINY_CONFIGS["odd_vocabulary"], 2)
    with pytest.raises(UserError, match="vocab_size 9 leaves no token to the last of them"):
        check_world_size(replace(TINY_CONFIGS["odd_vocabulary"], vocab_size=9), 4)
    three = replace(GEMMA_7B, num_attention_heads=12, num_key_value_heads=3)
    with pytest.raises(UserError, match="num_key_value_heads 3 is neither a multiple nor a divisor"):
        check_world_size(three, 2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
