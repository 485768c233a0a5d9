"""Reading dumped graphs: torchair's pbtxt and serialized models, and the files that are not whole graphs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.pbtxt import pbtxt

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError, read_graph
from graph_gemma.graph_model.ascend.graph_file import read_graph_file
from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.backends.ascend.interpreter import Program
from graph_gemma.runners.backends.ascend.printer import count_nodes, list_graph
from graph_gemma.runners.backends.ascend.provenance import Target, find_carriers, target_of

pytest.importorskip("google.protobuf")


def write(folder: Path, content: str | bytes, name: str = "graph.pbtxt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_text_gives_nodes_edges_constants_and_notes(tmp_path: Path) -> None:
    graph = read_graph_file(write(tmp_path, pbtxt()))
    assert list_graph(graph).splitlines() == [
        "graph: 4 inputs (0 on the host), 1 constants, 3 compute nodes, 0 copies of weights",
        "ops: MatMulV2 1, Muls 1, Reshape 1, ScatterNdUpdate 1",
        "%arg0_1 = Data() {index=0} -> float16[8,4]  # p_proj_weight: weight model.layers.0.proj.weight",
        "%arg1_1 = Data() {index=1} -> float16[6,4]  # key_cache_0: cache",
        "%arg2_1 = Data() {index=2} -> int64[3,1]  # slot_mapping: input",
        "%arg3_1 = Data() {index=3} -> float16[3,4]",
        "%Scatter = ScatterNdUpdate(&var=%arg1_1, indices=%arg2_1, updates=%arg3_1) -> float16[6,4]"
        "  # scatter in model.layers.0.self_attn",
        "%Muls = Muls(x=%arg3_1) {value=0.5} -> ?[?]  # mul in model.layers.0",
        "%Reshape = Reshape(x=%Muls, shape=[3, 4]) -> float16[3,4]",
        "%MatMulV2 = MatMulV2(x1=%Reshape, x2=%arg0_1) {transpose_x2=True} -> float16[3,8]"
        "  # linear_7 (ascend.linear.default) in model.layers.0.proj",
        "%NetOutput = NetOutput(input0=%MatMulV2) after %Scatter",
    ]
    assert [(c.attribute, c.node.name, c.how) for c in find_carriers(graph)] == [("softmax_scale", "Muls", "value=0.5")]


def test_a_comment_before_the_text_is_no_part_of_the_graph(tmp_path: Path) -> None:
    graph = read_graph_file(write(tmp_path, "# soc atlas_300i_duo\n# CANN stand-in\n" + pbtxt()))
    assert list_graph(graph) == list_graph(read_graph_file(write(tmp_path, pbtxt())))
    assert target_of(graph) == Target("atlas_300i_duo", "CANN stand-in")


def test_inputs_on_the_host_are_told_from_their_descriptors(tmp_path: Path) -> None:
    text = pbtxt().replace('device_type: "NPU"', 'device_type: "CPU"', 1)
    assert count_nodes(read_graph_file(write(tmp_path, text))).host_inputs == 1


def test_a_serialized_model_reads_like_its_text(tmp_path: Path) -> None:
    from graph_gemma.graph_model.ascend.ge_proto import messages
    from graph_gemma.graph_model.ascend.graph_file import from_pbtxt

    model = messages().ModelDef()
    model.graph.add().CopyFrom(from_pbtxt(pbtxt().encode()))
    text, binary = write(tmp_path, pbtxt()), write(tmp_path, model.SerializeToString(), "graph.pb")
    assert list_graph(read_graph_file(binary)) == list_graph(read_graph_file(text))


def test_unknown_dtypes_and_layouts_are_listed_but_not_run(tmp_path: Path) -> None:
    foreign = pbtxt().replace("DT_FLOAT16", "DT_INT4", 1)
    graph = read_graph_file(write(tmp_path, foreign))
    assert "%arg0_1 = Data() {index=0} -> DT_INT4[8,4]" in list_graph(graph)
    with pytest.raises(GeGraphError, match="Data arg0_1: output y is declared DT_INT4"):
        Program(graph)
    graph = read_graph_file(write(tmp_path, pbtxt().replace('layout: "ND"', 'layout: "FRACTAL_NZ"', 1)))
    assert list_graph(graph) == list_graph(read_graph_file(write(tmp_path, pbtxt())))
    with pytest.raises(GeGraphError, match="Data arg0_1: output y has the layout 'FRACTAL_NZ'"):
        Program(graph)


def test_a_dtype_of_no_name_is_known_by_its_number(tmp_path: Path) -> None:
    from graph_gemma.graph_model.ascend.graph_file import from_pbtxt

    proto = from_pbtxt(pbtxt().encode())
    proto.op[0].output_desc[0].dtype = 77
    proto.op[-2].output_desc[0].dtype = 0
    graph = read_graph(proto)
    assert (graph.nodes[0].outputs[0].dtype, graph.nodes[0].outputs[0].unknown_dtype) == (None, "77")
    assert (graph.nodes[-2].outputs[0].dtype, graph.nodes[-2].outputs[0].unknown_dtype) == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pbtxt()[:-300], r"\d+:\d+ :"),  # inside a node
        (pbtxt()[: pbtxt().rindex("node {")], "0 NetOutput"),  # between two nodes
        (pbtxt().replace('input: "Muls:0"', 'input: "Muls:3"'), "Reshape reads Muls:3"),
        (pbtxt().replace('name: "Muls"', 'name: "Other"'), "Reshape reads Muls:0"),
        ("", "0 NetOutput"),
        ("a listing\nof something", 'no field named "a"'),
        (b"\xff\xfe\x00", "decode"),
        (pbtxt().replace("transpose_x2", "[i]x3"), 'no field named "b"'),
    ],
)
def test_what_is_not_a_whole_graph_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a whole GE graph") as error:
        read_graph_file(write(tmp_path, content))
    assert "graph.pbtxt" in str(error.value)
    assert re.search(message, str(error.value))


def test_bytes_that_are_no_model_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (b"\xff\xff\xff", b""):
        with pytest.raises(UserError, match="is not a whole GE graph"):
            read_graph_file(write(tmp_path, content, "graph.pb"))
    with pytest.raises(UserError, match="cannot be read"):
        read_graph_file(tmp_path / "missing.pbtxt")
