"""Listings of lowered graphs are those that were reviewed; dumps are read with the messages that wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import torchair_steps as steps
from support.chip_processes import A2, DUO, on_each_chip
from support.data import LISTINGS
from support.rank_graphs import lower_rank

from graph_gemma.graph_model.ascend.ge_proto import messages
from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.runners.backends.ascend import standin
from graph_gemma.runners.backends.ascend.lower import LoweredStep, lower
from graph_gemma.runners.backends.ascend.printer import list_graph
from graph_gemma.runners.backends.ascend.provenance import Target, target_of

HALF, BRAIN = torch.float16, torch.bfloat16
TINY = replace(steps.BASE, num_hidden_layers=1)
LISTED: dict[str, dict[str, steps.StepCase]] = {
    soc: {
        f"{phase}-{norm}": steps.StepCase(TINY, HALF, 64, phase, norm)
        for phase in ("prefill", "extend", "decode")
        for norm in ("exact", "fused")
    }
    for soc in (A2, DUO)
}
DECODE = steps.StepCase(TINY, HALF, 64, "decode")
LISTED[A2] |= {
    "decode-bfloat16": replace(DECODE, dtype=BRAIN),
    "decode-sampled": replace(DECODE, sampled=True),
    "decode-w8a8": replace(DECODE, scheme="w8a8"),
    "decode-kv8": replace(DECODE, kv8=True),
    "prefill-blocks_of_128": steps.StepCase(TINY, HALF, 128, "prefill"),
    "extend-blocks_of_128": steps.StepCase(TINY, HALF, 128, "extend"),
}
# A layer with a window and one without, or with a soft-cap and both.
GEMMA2, GEMMA3 = (
    {phase: replace(DECODE, config=config, phase=phase, width=3) for phase in ("prefill", "extend", "decode")}
    for config in (steps.GEMMA2, steps.GEMMA3)
)
LISTED[A2] |= {f"{phase}-gemma2": step for phase, step in GEMMA2.items()}
LISTED[A2] |= {f"{phase}-gemma3": step for phase, step in GEMMA3.items()}
LISTED[A2]["decode-gemma3-fused"] = replace(GEMMA3["decode"], norm="fused")
LISTED[DUO] |= {"extend-gemma2": GEMMA2["extend"], **{f"{phase}-gemma3": step for phase, step in GEMMA3.items()}}
# Wide heads: many query heads per key head are decomposed, two become rows of the batch.
LISTED[DUO] |= {
    "decode-decomposed": replace(DECODE, config=replace(TINY, num_attention_heads=8, head_dim=256)),
    "decode-folded": replace(DECODE, config=replace(TINY, num_attention_heads=4, num_key_value_heads=2, head_dim=256)),
}
# Of the last of two ranks: integers and, where the chip can, float32 are summed.
OF_RANKS = {soc: {"decode-rank1of2-w8a8": replace(DECODE, scheme="w8a8")} for soc in (A2, DUO)}


def lowered_steps(soc: str) -> Iterator[tuple[str, LoweredStep]]:
    for name, step in LISTED[soc].items():
        yield name, lower(step.selected(find_soc(soc)))
    for name, step in OF_RANKS[soc].items():
        yield name, lower_rank(soc, step, Shard(1, 2)).step


@on_each_chip
def test_listings_are_those_that_were_reviewed(soc: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`pytest tests/runners/backends --update-golden` rewrites them."""
    written = {}
    for name, lowered in lowered_steps(soc):
        written[f"{soc}-{name}.txt"] = list_graph(lowered.graph)
        (tmp_path / "dump.pbtxt").write_text(lowered.pbtxt, encoding="utf-8")
        assert list_graph(read_graph_file(tmp_path / "dump.pbtxt")) == written[f"{soc}-{name}.txt"]
    if request.config.getoption("--update-golden"):
        for path in LISTINGS.glob(f"{soc}-*.txt"):
            path.unlink()
        for name, text in written.items():
            (LISTINGS / name).write_text(text, encoding="utf-8")
    assert written == {path.name: path.read_text(encoding="utf-8") for path in LISTINGS.glob(f"{soc}-*.txt")}


@pytest.mark.chip(A2)
def test_what_torchair_itself_writes_says_stand_in(tmp_path: Path) -> None:
    lowered = lower(DECODE.selected(find_soc(A2)))
    lowered.concrete.dump(str(tmp_path / "torchairs.pbtxt"))
    (tmp_path / "model.pb").write_bytes(lowered.serialized)
    for name in ("torchairs.pbtxt", "model.pb"):
        assert target_of(read_graph_file(tmp_path / name)) == Target(A2, standin.BANNER)


@pytest.mark.chip(A2)
def test_graphs_are_read_with_the_messages_that_torchair_writes() -> None:
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
