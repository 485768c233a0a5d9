"""Listings of lowered graphs, which are compared with reviewed ones, and the messages that dumps are read with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import graph_model  # noqa: F401  (before torch)

import torch  # isort: skip
from support import torchair_steps as steps  # isort: skip
from support.standin_cases import A2, Cases

from graph_model.ascend.ge_proto import messages
from graph_model.ascend.graph_file import read_graph_file
from graph_model.ascend.listing import list_graph
from graph_model.ascend.lower import lower
from graph_model.ascend.soc import find_soc

CASES = Cases()


def write_listings(soc: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for norm in ("exact", "fused"):
        for phase in ("prefill", "extend", "decode"):
            step = steps.StepCase(replace(steps.BASE, num_hidden_layers=1), torch.float16, 64, phase, norm)
            lowered = lower(step.selected(find_soc(soc)))
            text = list_graph(lowered.graph)
            (folder / f"{soc}-{phase}-{norm}.txt").write_text(text, encoding="utf-8")
            lowered.write_pbtxt(folder / "dump.pbtxt")
            assert list_graph(read_graph_file(folder / "dump.pbtxt")) == text


@CASES.add(A2)
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
