"""Collectives of the GE interpreter over two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.ge_graphs import covers

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops.collective import process_group

RANK = """
import sys
import torch
import torch.distributed as dist
from graph_gemma.graph_model.ascend.ge_graph import GeGraphError
from graph_gemma.runners.backends.ascend.interpreter.ops import collective as c
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
group = "tag=ptd:0;rank_list=0,1"
parts = [torch.arange(4.0).bfloat16() + 1, torch.arange(4.0).bfloat16() * 10]
mine = parts[rank].clone()
assert torch.equal(c.hcom_all_reduce(mine, reduction="sum", group=group), parts[0] + parts[1])
assert torch.equal(c.hcom_all_reduce(mine, reduction="max", group=group), torch.maximum(*parts))
assert torch.equal(c.hcom_all_gather(mine, rank_size=2, group=group), torch.cat(parts))
scattered = c.hcom_reduce_scatter(mine, reduction="sum", rank_size=2, group=group)
assert torch.equal(scattered, (parts[0] + parts[1]).chunk(2)[rank])
assert torch.equal(c.hcom_broadcast([mine], root_rank=1, group=group), parts[1])
assert torch.equal(mine, parts[rank])
inputs = [torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(i)).half() for i in range(2)]
x, w = inputs[rank][0], inputs[rank][1, :5]
products = [(each[0].float() @ each[1, :5].float().t()).half() for each in inputs]
total = (products[0].float() + products[1].float()).half()
assert torch.equal(c.matmul_all_reduce(x, w, group=group, is_trans_b=True), total)
assert torch.equal(c.matmul_all_reduce(x, w.t(), group=group), total)
for wrong in ({"reduce_op": "max"}, {"is_trans_a": True}, {"y_dtype": 0}, {"bias": w[0]}, {"comm_quant_mode": 1}):
    try:
        c.matmul_all_reduce(x, w, group=group, is_trans_b=True, **wrong)
    except GeGraphError:
        continue
    raise AssertionError(wrong)
try:
    c.hcom_all_reduce(mine, reduction="prod", group=group)
except GeGraphError as error:
    assert "prod" in str(error)
else:
    raise AssertionError
dist.destroy_process_group()
"""


@covers("HcomAllReduce", "HcomAllGather", "HcomReduceScatter", "HcomBroadcast", "MatmulAllReduce")
def test_collectives_of_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_groups_that_do_not_exist_are_refused() -> None:
    with pytest.raises(GeGraphError, match="no process group of ranks"):
        process_group("tag=ptd:0;rank_list=0,7")
    with pytest.raises(GeGraphError, match="not of the form"):
        process_group("world")
