"""The torchair backend over the stand-in: run as a script, once per SoC.

python torchair_cases.py SOC CACHE_DIR RESULTS.json [CASE ...] runs the cases (all of the SoC's that are not slow) and
writes {case: error text or ""}. A process of its own, because torch_npu changes torch and keeps the chip's name.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS
from support.token_rule import check_greedy
from torchair_mutations import MUTATIONS, Mutation

from graph_model.ascend import standin
from graph_model.ascend.ge_graph import GeGraphError
from graph_model.ascend.ge_proto import messages
from graph_model.ascend.graph_file import read_graph_file
from graph_model.ascend.kernels import register_kernels
from graph_model.ascend.legality import check_graph
from graph_model.ascend.listing import count_nodes, list_graph
from graph_model.ascend.lower import lower
from graph_model.ascend.recording import recorded_graphs
from graph_model.ascend.soc import find_soc
from graph_model.backends.torchair import AscendOptions, kernel_passes
from graph_model.bucket import Bucket
from graph_model.capture import capture
from graph_model.config import GEMMA_2B, GEMMA_7B
from graph_model.graph import Pages
from graph_model.quantisation import Quantisation, select_linears
from passes.attributes import check_attributes
from passes.check import TOLERANCE
from passes.contract import PassError
from passes.manager import DEFAULT_PASSES, run_passes
from runners.entry import main as run_command
from runners.infer import infer

LISTINGS = Path(sys.argv[3]).parent / "listings" if __name__ == "__main__" else Path()
A2, DUO = "atlas_800i_a2", "atlas_300i_duo"
HALF, BRAIN = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    soc: str
    run: Callable[[Path], None]
    slow: bool = False


CASES: dict[str, Case] = {}


def case(soc: str, slow: bool = False) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[function.__name__] = Case(soc, function, slow)
        return function

    return register


def main() -> None:
    soc, cache_dir, results, *only = sys.argv[1:]
    torch.set_num_threads(1)
    standin.load(find_soc(soc), Path(cache_dir) / "cann_standin")
    register_kernels()
    names = only or [name for name, item in CASES.items() if item.soc == soc and not item.slow]
    outcome = {}
    for name in names:
        try:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                CASES[name].run(Path(folder))
            print(f"{name}: {time.perf_counter() - start:.1f} s")
            outcome[name] = ""
        except BaseException:
            outcome[name] = traceback.format_exc()
    Path(results).write_text(json.dumps(outcome))


# Level 2: what the interpreter computes from the lowered graph, what the CPU kernels compute from the graph that was
# lowered, and the canonical graph that it was made from.

PHASES = ("prefill", "extend", "decode")
DECOMPOSED = replace(steps.BASE, num_attention_heads=8, num_key_value_heads=1, head_dim=256)
GROUPED = replace(steps.BASE, num_attention_heads=4, num_key_value_heads=2, head_dim=256)
WIDE_GROUPS = replace(steps.BASE, num_attention_heads=8, num_key_value_heads=2, head_dim=144)
ONE_TO_ONE = replace(steps.BASE, num_attention_heads=2, num_key_value_heads=2, head_dim=256)
BIASED = replace(TINY_CONFIGS["attention_bias"], num_hidden_layers=2)
UNTIED = replace(TINY_CONFIGS["untied_head"], num_hidden_layers=2)


def level_2(soc: str, step: steps.StepCase) -> None:
    canonical, selected = step.canonical(), step.selected(find_soc(soc))
    inputs = steps.step_inputs(step)
    caches = steps.filled_caches(step, canonical, inputs)
    expected = steps.run_on_cpu(canonical, step, inputs, caches)
    on_cpu = steps.run_on_cpu(selected, step, inputs, caches)
    lowered = steps.run_lowered(lower(selected), selected, step, inputs, caches)
    # One unit of an int8 activation moves logits of a small random model by more than rounding does.
    bound = TOLERANCE[step.dtype] if step.scheme in (None, "w8a16") else 0.1
    errors = [steps.difference(a, b) for a, b in ((expected, on_cpu), (on_cpu, lowered), (expected, lowered))]
    assert max(errors) <= bound, f"{step}: {errors}, allowed {bound}"


def register_level_2(soc: str, name: str, *cases: steps.StepCase, slow: bool = False) -> None:
    def run(folder: Path) -> None:
        for step in cases:
            level_2(soc, step)

    CASES[f"{name}_on_{soc}"] = Case(soc, run, slow)


for _dtype in (HALF, BRAIN):
    for _size in (64, 128):
        register_level_2(
            A2,
            f"graph_{_dtype}_blocks_of_{_size}".replace("torch.", ""),
            *(steps.StepCase(steps.BASE, _dtype, _size, phase) for phase in PHASES),
            slow=(_dtype, _size) not in ((HALF, 64), (BRAIN, 128)),
        )
for _soc in (A2, DUO):
    for _name, _config in {"biased": BIASED, "untied": UNTIED}.items():
        register_level_2(
            _soc, f"graph_{_name}", *(steps.StepCase(_config, HALF, 64, phase) for phase in PHASES), slow=True
        )
    register_level_2(
        _soc, "graph_fused_norm", steps.StepCase(steps.BASE, HALF, 64, "decode", "fused"), slow=_soc == DUO
    )
register_level_2(DUO, "graph_blocks_of_64", *(steps.StepCase(steps.BASE, HALF, 64, phase) for phase in PHASES))
register_level_2(
    DUO, "graph_blocks_of_128", *(steps.StepCase(steps.BASE, HALF, 128, phase) for phase in PHASES), slow=True
)
for _name, _config in {"decomposed": DECOMPOSED, "grouped": GROUPED, "wide_groups": WIDE_GROUPS}.items():
    register_level_2(DUO, f"graph_{_name}_decode", steps.StepCase(_config, HALF, 64, "decode"))
for _name, _config in {"grouped": GROUPED, "one_to_one": ONE_TO_ONE}.items():
    for _soc in (A2, DUO):
        register_level_2(
            _soc, f"graph_{_name}", *(steps.StepCase(_config, HALF, 64, phase) for phase in PHASES), slow=True
        )


for _soc, _dtype, _scheme, _norm, _phases, _slow in (
    (A2, HALF, "w8a8", "exact", ("prefill", "decode"), False),
    (A2, BRAIN, "w8a8", "fused", ("decode",), True),
    (A2, BRAIN, "w8a8_dynamic", "exact", ("decode",), False),
    (A2, HALF, "w8a8_dynamic", "fused", ("extend",), True),
    (A2, HALF, "w8a16", "exact", ("decode",), False),
    (DUO, HALF, "w8a8", "exact", ("decode",), False),
    (DUO, HALF, "w8a16", "fused", ("decode",), True),
):
    register_level_2(
        _soc,
        f"graph_{_scheme}_{_dtype}_{_norm}".replace("torch.", ""),
        *(steps.StepCase(steps.BASE, _dtype, 64, phase, _norm, _scheme) for phase in _phases),
        slow=_slow,
    )


# Tokens through the command line.


def run_infer(folder: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command printed, and its answers."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    output = folder / "out.jsonl"
    sys.argv = ["infer.py", f"cache_dir={folder / 'cache'}", f"output_file={output}", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(infer, "infer")
    except SystemExit as end:
        raise AssertionError(f"exit {end.code}: {err.getvalue()}") from end
    finally:
        sys.argv = before
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    return out.getvalue(), sorted(answers, key=lambda answer: answer["index"])


def tokens_follow_transformers(soc: str, folder: Path, dtype: torch.dtype, config: Any, *arguments: str) -> None:
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
    excused = sum(check_greedy(model, answer["prompt_token_ids"], answer["token_ids"]) for answer in answers)
    assert sum(len(answer["token_ids"]) for answer in answers) == 80
    assert excused <= 1, excused


@case(A2)
def tokens_in_bfloat16_equal_those_of_transformers(folder: Path) -> None:
    tokens_follow_transformers(A2, folder, BRAIN, steps.BASE, "block_size=64", f"dump_dir={folder / 'dump'}")
    listing = (folder / "dump" / "extend-b1-t64-w4" / "lowered.txt").read_text()
    assert standin.BANNER in listing
    assert "attention: FusedInferAttentionScore, block_size 64 is not a multiple of 128" in listing
    assert "GemmaRmsNorm" in (folder / "dump" / "decode-b1-w4" / "lowered.pbtxt").read_text()


@case(A2)
def tokens_in_float16_with_paging_in_every_phase_equal_those_of_transformers(folder: Path) -> None:
    tokens_follow_transformers(A2, folder, HALF, BIASED, "block_size=128")


@case(DUO)
def tokens_on_the_duo_equal_those_of_transformers(folder: Path) -> None:
    tokens_follow_transformers(DUO, folder, HALF, steps.BASE, "block_size=64", f"dump_dir={folder / 'dump'}")
    listing = (folder / "dump" / "decode-b1-w4" / "lowered.txt").read_text()
    assert "attention: IncreFlashAttention, paged; 4 query heads per key head" in listing


@case(A2)
def sampling_gives_the_tokens_of_eager(folder: Path) -> None:
    make_checkpoint(folder / "checkpoint", steps.BASE, dtype=HALF)
    settings = [f"model.path={folder / 'checkpoint'}", "prompt_token_ids=[[5,6,7],[9,3]]", "max_new_tokens=20"]
    settings += ["sampling.temperature=0.8", "sampling.top_k=20", "sampling.top_p=0.9", "max_seq_len=128"]
    settings += ["max_batch_size=2", "max_prefill_batch_size=1"]
    _, expected = run_infer(folder, *settings, "backend=eager")
    _, found = run_infer(folder, *settings, "backend=torchair")
    assert [a["token_ids"] for a in found] == [a["token_ids"] for a in expected]


@case(A2)
def check_mode_holds_the_kernel_passes_to_their_tiers(folder: Path) -> None:
    make_checkpoint(folder / "checkpoint", steps.BASE, dtype=BRAIN)
    settings = [f"model.path={folder / 'checkpoint'}", "prompt_token_ids=[[5,6,7]]", "max_new_tokens=4", "check=true"]
    printed, _ = run_infer(folder, *settings, "backend=torchair", "max_seq_len=128")
    assert "check: ascend_fused_attention (tolerant) holds on 4 graphs" in printed
    assert "check: 4 tokens equal the plain model's" in printed


@case(A2)
def one_graph_serves_a_thousand_steps_of_growing_length(folder: Path) -> None:
    step = steps.StepCase(replace(steps.BASE, num_hidden_layers=1), HALF, 512, "decode")
    graph = step.selected(find_soc(A2))
    inputs = steps.step_inputs(step)
    arguments = [w.to("npu") for w in steps.weights_of(graph, step)]
    arguments += [torch.zeros(n.meta["val"].shape, dtype=HALF).to("npu") for n in graph.placeholders("cache")]
    with recorded_graphs() as loaded:
        names = [node.name for node in graph.placeholders("input")]
        run = lower(graph).load([*arguments, *(inputs[name].to("npu") for name in names)])
        for position in range(1000):
            inputs["positions"][:2] = position
            inputs["context_lens"][:2] = position + 1
            table = inputs["block_table"][:2, position // 512]
            inputs["slot_mapping"][:2, 0] = table * 512 + position % 512
            run(*arguments, *(inputs[name].to("npu") for name in names))
    assert len(loaded) == 1


# Full-size models, on fake tensors.


def lowered_counts(
    soc: str,
    config: Any,
    norm: str,
    bucket: Bucket,
    dtype: torch.dtype,
    block_size: int,
    quantisation: Quantisation | None = None,
) -> Any:
    """Counts of the lowered graph's nodes, and its input names."""
    graph = capture(config, bucket, Pages(4096, block_size), dtype, quantisation)
    run_passes(graph, [cls() for cls in DEFAULT_PASSES])
    run_passes(graph, kernel_passes(AscendOptions(find_soc(soc), norm)))
    lowered = lower(graph)
    check_graph(lowered.graph, find_soc(soc))
    return count_nodes(lowered.graph), len(graph.graph.find_nodes(op="placeholder"))


# Kernels per decoder layer of a decode step. The DUO's rotary embedding is 18 nodes of them (no RotaryMul above a
# head_dim of 128), its exact norms have two casts each, and the 2B's decomposed attention has 13 nodes.
BUDGETS = {
    (A2, "2b", "exact"): 14,
    (A2, "2b", "fused"): 12,
    (A2, "7b", "exact"): 14,
    (A2, "7b", "fused"): 12,
    (DUO, "2b", "exact"): 45,
    (DUO, "2b", "fused"): 39,
    (DUO, "7b", "exact"): 35,
    (DUO, "7b", "fused"): 29,
}
# Kernels besides: embedding, rotary tables, the final norm, the head, the token; on the DUO masks.
BESIDES = {A2: 15, DUO: 19}


def check_budget(soc: str, size: str, norm: str, layers: int | None = None) -> None:
    """layers: fewer than the model has, where time is short."""
    config = {"2b": GEMMA_2B, "7b": GEMMA_7B}[size]
    layers = layers or config.num_hidden_layers
    config = replace(config, num_hidden_layers=layers)
    counts, placeholders = lowered_counts(soc, config, norm, Bucket("decode", 8, 1, 16), HALF, 64)
    besides = counts.compute - layers * BUDGETS[soc, size, norm]
    assert 0 < besides <= BESIDES[soc], f"{counts.compute} kernels in {layers} layers: {counts.by_type}"
    assert counts.copies["TensorMove"] == counts.copies["Assign"] == counts.copies["Transpose"] == 0, counts
    assert counts.weight_copies == counts.host_inputs == 0, counts
    assert counts.inputs == placeholders
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < 2e9, peak


def register_budget(soc: str, size: str, norm: str, layers: int | None, slow: bool) -> None:
    name = f"budget_{size}_{norm}_on_{soc}" + (f"_of_{layers}_layers" if layers else "")
    CASES[name] = Case(soc, lambda folder: check_budget(soc, size, norm, layers), slow)


for _soc, _size_name, _norm in BUDGETS:
    register_budget(_soc, _size_name, _norm, None, slow=(_soc, _size_name, _norm) != (A2, "7b", "exact"))
register_budget(A2, "2b", "fused", 4, slow=False)
for _size_name in ("2b", "7b"):
    register_budget(DUO, _size_name, "exact", 4, slow=False)


# Two kernels per layer above floating point are allowed; norm and quantise in one saves some.
QUANTISED_BUDGETS = {
    (A2, "w8a8", "exact"): 13,
    (A2, "w8a8", "fused"): 13,
    (A2, "w8a8_dynamic", "exact"): 13,
    (A2, "w8a16", "exact"): 14,
    (DUO, "w8a8", "exact"): 30,
    (DUO, "w8a16", "exact"): 35,
}


def check_quantised_budget(soc: str, scheme: Any, norm: str, layers: int) -> None:
    config = replace(GEMMA_7B, num_hidden_layers=layers)
    quantisation = Quantisation(scheme, select_linears(config, ["down_proj", "lm_head"]), stored=scheme == "w8a8")
    bucket = Bucket("decode", 8, 1, 16)
    counts, placeholders = lowered_counts(soc, config, norm, bucket, HALF, 64, quantisation)
    besides = counts.compute - layers * QUANTISED_BUDGETS[soc, scheme, norm]
    assert 0 < besides <= BESIDES[soc] + 3, f"{counts.compute} kernels in {layers} layers: {counts.by_type}"
    assert counts.copies["TensorMove"] == counts.copies["Assign"] == counts.copies["Transpose"] == 0, counts
    assert counts.weight_copies == counts.host_inputs == 0, counts
    assert counts.inputs == placeholders


def register_quantised_budget(soc: str, scheme: str, norm: str, layers: int, slow: bool) -> None:
    name = f"budget_7b_{scheme}_{norm}_on_{soc}" + ("" if slow else f"_of_{layers}_layers")
    CASES[name] = Case(soc, lambda folder: check_quantised_budget(soc, scheme, norm, layers), slow)


for _soc, _scheme, _norm in QUANTISED_BUDGETS:
    register_quantised_budget(_soc, _scheme, _norm, GEMMA_7B.num_hidden_layers, slow=True)
for _soc, _scheme in ((A2, "w8a8"), (A2, "w8a8_dynamic"), (DUO, "w8a8")):
    register_quantised_budget(_soc, _scheme, "exact", 3, slow=False)


def check_compiles(soc: str, size: str, dtype: torch.dtype) -> None:
    """Every phase and block size lowers to a legal graph that copies no weight and no cache."""
    config = {"2b": GEMMA_2B, "7b": GEMMA_7B}[size]
    for block_size in (16, 64, 128):
        width = 1024 // block_size
        buckets = [Bucket("prefill", 1, 512, 0), Bucket("extend", 1, 256, width), Bucket("decode", 32, 1, width)]
        for bucket in [*buckets, Bucket("decode", 8, 1, width, "sample", 5)]:
            counts, _ = lowered_counts(soc, config, "exact", bucket, dtype, block_size)
            assert counts.copies["TensorMove"] == counts.copies["Assign"] == 0, (bucket, counts)
            assert counts.weight_copies == counts.host_inputs == 0, (bucket, counts)


def register_compile(soc: str, size: str, dtype: torch.dtype) -> None:
    name = f"every_bucket_of_{size}_in_{dtype}_lowers_on_{soc}".replace("torch.", "")
    CASES[name] = Case(soc, lambda folder: check_compiles(soc, size, dtype), slow=True)


for _size_name in ("2b", "7b"):
    for _soc, _dtype in ((A2, HALF), (A2, BRAIN), (DUO, HALF)):
        register_compile(_soc, _size_name, _dtype)


# What goes wrong is noticed.


def caught(soc: str, step: steps.StepCase, mutate: Mutation) -> str:
    """Which check notices a mutation of the graph that is lowered; "" if none does."""
    graph, expected = step.selected(find_soc(soc)), step.canonical()
    inputs = steps.step_inputs(step)
    caches = steps.filled_caches(step, expected, inputs)
    reference = steps.run_on_cpu(expected, step, inputs, caches)
    mutate(graph)
    graph.clean()
    try:
        check_attributes(graph, "mutation")
    except PassError:
        return "attributes"
    lowered = lower(graph)
    counts = count_nodes(lowered.graph)
    if any(counts.copies[name] for name in ("TensorMove", "Assign", "Transpose")) or counts.weight_copies:
        return "copies"
    try:
        found = steps.run_lowered(lowered, graph, step, inputs, caches)
    except GeGraphError:
        return "interpreter"
    return "numbers" if steps.difference(reference, found) > TOLERANCE[step.dtype] else ""


def check_mutations(soc: str) -> None:
    unnoticed = {}
    for name, (phase, catcher, mutate) in MUTATIONS[soc].items():
        found = caught(soc, steps.StepCase(steps.BASE, HALF, 64, phase), mutate)
        if found != catcher:
            unnoticed[name] = f"{found or 'nothing'} instead of {catcher}"
    assert not unnoticed, unnoticed


for _soc in (A2, DUO):
    CASES[f"every_mutation_is_noticed_on_{_soc}"] = Case(_soc, lambda folder, soc=_soc: check_mutations(soc))


# Golden listings.


def write_listings(soc: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for norm in ("exact", "fused"):
        for phase in PHASES:
            step = steps.StepCase(replace(steps.BASE, num_hidden_layers=1), HALF, 64, phase, norm)
            lowered = lower(step.selected(find_soc(soc)))
            text = list_graph(lowered.graph)
            (folder / f"{soc}-{phase}-{norm}.txt").write_text(text, encoding="utf-8")
            lowered.write_pbtxt(folder / "dump.pbtxt")
            assert list_graph(read_graph_file(folder / "dump.pbtxt")) == text


@case(A2)
def graphs_are_read_with_the_messages_that_torchair_writes(folder: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from torchair._ge_concrete_graph import ge_ir_pb2

    theirs = FileDescriptorProto.FromString(ge_ir_pb2.GraphDef.DESCRIPTOR.file.serialized_pb)
    found = {m.name: m for m in [*theirs.message_type, *(n for m in theirs.message_type for n in m.nested_type)]}
    found |= {n.name: n for m in theirs.message_type for inner in m.nested_type for n in inner.nested_type}
    for name, message in vars(messages()).items():
        if not name.startswith("Pbtxt"):
            fields = {f.name: (f.number, f.type, f.label) for f in found[name].field}
            ours = FileDescriptorProto.FromString(message.DESCRIPTOR.file.serialized_pb)
            own = next(m for m in ours.message_type if m.name == name)
            assert {f.name: (f.number, f.type, f.label) for f in own.field}.items() <= fields.items(), name
            assert fields.keys() - {f.name for f in own.field} <= {"attr_groups"}, name


for _soc in (A2, DUO):
    CASES[f"listings_of_{_soc}"] = Case(_soc, lambda folder, soc=_soc: write_listings(soc, LISTINGS))


if __name__ == "__main__":
    main()
