"""infer.py on several ranks: the tokens of one, and what happens when a rank dies."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import rank_processes as ranks
from support.checkpoints import make_checkpoint
from support.configs import TINY_CONFIGS
from support.ranks import run_ranks

from graph_gemma.graph_model.bucket import Bucket, make_inputs
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.tensor_parallel import Shard
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.compile import CompiledModel
from graph_gemma.runners.distributed import followers, launch
from graph_gemma.runners.distributed.group import Place, _check_agreement, _device_index, _prepare_device
from graph_gemma.runners.distributed.leader import LeadingModel
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.llm import LLM
from graph_gemma.runners.llm.load import load_model
from graph_gemma.runners.llm.ranks import on_ranks
from graph_gemma.runners.settings.declared.model import Ranks
from graph_gemma.runners.settings.model_settings import ModelSettings, check_place, resolve_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PROMPTS = [[5 + i % 90, 7, *range(3, 3 + i % 11)] for i in range(300)]
IN_S = 20.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "checkpoint"
    make_checkpoint(path, replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1))
    return path


def answers_of_one(checkpoint: Path, tmp_path: Path, indices: list[int], new_tokens: int) -> list[list[int]]:
    with LLM([f"model.path={checkpoint}", "backend=eager", f"cache_dir={tmp_path / 'one'}"]) as llm:
        sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        return [result.token_ids for result in llm.generate([PROMPTS[index] for index in indices], sampling)]


@pytest.mark.parametrize(
    ("world_size", "victim"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_a_rank_killed_in_decode_leaves_the_finished_answers(
    checkpoint: Path, tmp_path: Path, world_size: int, victim: int
) -> None:
    arguments = ranks.arguments(checkpoint, tmp_path, PROMPTS, f"world_size={world_size}", "max_new_tokens=24")
    process = ranks.start(arguments)
    pids = ranks.ranks_of(process.pid, world_size)
    ranks.wait_for(lambda: len(ranks.finished(tmp_path)) >= 3, process)
    errors, seconds = ranks.end(process, pids, signal.SIGKILL, pids[victim])
    assert process.returncode == 1
    assert f"rank {victim} (process {pids[victim]}) was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    assert seconds < IN_S
    found = ranks.finished(tmp_path)
    assert 3 <= len(found) < len(PROMPTS)
    expected = answers_of_one(checkpoint, tmp_path, [int(str(line["index"])) for line in found], 24)
    assert [line["token_ids"] for line in found] == expected


LONG = [[5 + i % 90, *range(3, 150)] for i in range(200)]


def at_start(pids: dict[int, int], directory: Path) -> bool:
    return True


def at_load(pids: dict[int, int], directory: Path) -> bool:
    """Rank 0 has mapped the weights."""
    return "safetensors" in Path(f"/proc/{pids[0]}/maps").read_text().replace("_safetensors_rust", "")


def at_prefill(pids: dict[int, int], directory: Path) -> bool:
    """Every answer is one token long, so that all steps are prompts' steps."""
    return len(ranks.finished(directory)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("when", [at_start, at_load, at_prefill])
def test_a_rank_killed_at_any_moment_ends_all(
    checkpoint: Path, tmp_path: Path, when: Callable[[dict[int, int], Path], bool], victim: int
) -> None:
    command = ranks.arguments(checkpoint, tmp_path, LONG, "world_size=2", "max_new_tokens=1", "max_prefill_tokens=64")
    process = ranks.start(command)
    pids = ranks.ranks_of(process.pid, 2)
    ranks.wait_for(lambda: when(pids, tmp_path), process)
    errors, seconds = ranks.end(process, pids, signal.SIGKILL, pids[victim])
    assert process.returncode == 1
    assert f"rank {victim} (process {pids[victim]}) was ended by SIGKILL" in errors
    assert seconds < IN_S
    assert len(ranks.finished(tmp_path)) < len(LONG)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_ctrl_c_in_a_terminal_ends_all(checkpoint: Path, tmp_path: Path, world_size: int) -> None:
    """A terminal interrupts launcher and ranks at once."""
    arguments = ranks.arguments(checkpoint, tmp_path, PROMPTS, f"world_size={world_size}", "max_new_tokens=24")
    process = ranks.start(arguments, own_group=True)
    pids = ranks.ranks_of(process.pid, world_size)
    ranks.wait_for(lambda: len(ranks.finished(tmp_path)) >= 2, process)
    errors, seconds = ranks.end(process, pids, signal.SIGINT, -process.pid)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert seconds < IN_S
    assert len(ranks.finished(tmp_path)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_launcher_ends_the_ranks(checkpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = ranks.start(ranks.arguments(checkpoint, tmp_path, PROMPTS, "world_size=2", "max_new_tokens=24"))
    pids = ranks.ranks_of(process.pid, 2)
    ranks.wait_for(lambda: len(ranks.finished(tmp_path)) >= 2, process)
    errors, seconds = ranks.end(process, pids, number, process.pid)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert ("interrupted" in errors) == (number == signal.SIGINT)
    assert "Traceback" not in errors
    assert seconds < IN_S
    assert len(ranks.finished(tmp_path)) >= 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_on_one_and_on_two_machines(checkpoint: Path, tmp_path: Path, nodes: int) -> None:
    """Two agents on loopback stand for two machines."""
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    launch = ["-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}", *meeting]
    command = ranks.arguments(checkpoint, tmp_path, PROMPTS[:6], "world_size=2", "max_new_tokens=8")
    agents = [ranks.start([*launch, *command]) for _ in range(nodes)]
    for agent in agents:
        _, errors = agent.communicate(timeout=400)
        assert agent.returncode == 0, errors
    found = sorted(ranks.finished(tmp_path), key=lambda line: int(str(line["index"])))
    assert [line["token_ids"] for line in found] == answers_of_one(checkpoint, tmp_path, list(range(6)), 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"rank 1: .* holds no weights"),
        (lambda path: os.truncate(path, 3000), "rank 1 differs from rank 0 in config.json, the files of the weights"),
    ],
    ids=["missing", "truncated"],
)
def test_a_checkpoint_that_one_machine_cannot_read_ends_all(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """Two agents on loopback stand for two machines, each with a checkpoint of its own."""
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    damage(other / "model.safetensors")
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    launch = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]
    agents = []
    for node, path in enumerate((checkpoint, other)):
        directory = tmp_path / str(node)
        directory.mkdir()
        # The ranks' numbers follow from the order in which the agents arrive.
        agents.append(ranks.start([*launch, *ranks.arguments(path, directory, PROMPTS[:2], "world_size=2")]))
    errors = [agent.communicate(timeout=400)[1] for agent in agents]
    assert all(agent.returncode for agent in agents)
    said = "\n".join(errors)
    assert re.search(message, said) or re.search(message.replace("rank 1: ", ""), said), said
    assert not any(ranks.finished(tmp_path / str(node)) for node in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["backend=inductor"], ["backend=eager", "check=true"]])
def test_sampled_answers_of_two_ranks_are_those_of_one(checkpoint: Path, tmp_path: Path, overrides: list[str]) -> None:
    texts = []
    for world_size in (1, 2):
        directory = tmp_path / str(world_size)
        directory.mkdir()
        sampling = ["sampling.temperature=0.9", "sampling.top_p=0.8", "sampling.seed=3", "max_new_tokens=12"]
        command = ranks.arguments(checkpoint, directory, PROMPTS[:5], *sampling, *overrides, f"world_size={world_size}")
        process = ranks.start(command)
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        texts.append([(line["index"], line["token_ids"]) for line in ranks.finished(directory)])
    assert sorted(texts[0]) == sorted(texts[1])


def settings(checkpoint: Path, *overrides: str) -> ModelSettings:
    return resolve_settings(compose("infer", [f"model.path={checkpoint}", "world_size=2", *overrides]))


def test_a_port_in_use_is_refused(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"ranks\.master_port: 127\.0\.0\.1:{port} cannot be used"):
            on_ranks(settings(checkpoint, f"ranks.master_port={port}"), lambda: None)


def test_ranks_with_different_settings_are_refused(checkpoint: Path) -> None:
    given = [settings(checkpoint), settings(checkpoint, "block_size=32")]

    def agree(shard: Shard) -> str:
        with contextlib.suppress(UserError):
            _check_agreement(settings=given[0], place=Place(shard.rank, 2, shard.rank, 2))
            return "equal"
        return "refused"

    def disagree(shard: Shard) -> str:
        with pytest.raises(UserError, match="rank 1 differs from rank 0"):
            _check_agreement(settings=given[shard.rank], place=Place(shard.rank, 2, shard.rank, 2))
        return "refused"

    assert run_ranks(2, agree) == ["equal", "equal"]
    assert run_ranks(2, disagree) == ["refused", "refused"]


def test_ranks_with_different_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The same model in other files; and a machine where the files are missing."""
    other, missing = tmp_path / "other", tmp_path / "missing"
    make_checkpoint(other, replace(TINY_CONFIGS["grouped_kv_heads"], num_hidden_layers=1), sharded=True)
    shutil.copytree(checkpoint, missing)
    (missing / "model.safetensors").unlink()
    for directory, message in ((other, "differs from rank 0 in .*files of the weights"), (missing, "holds no weights")):
        given = [settings(checkpoint), settings(directory)]

        def disagree(shard: Shard, message: str = message, given: list[ModelSettings] = given) -> str:
            with pytest.raises(UserError, match=message) as raised:
                _check_agreement(settings=given[shard.rank], place=Place(shard.rank, 2, shard.rank, 2))
            return str(raised.value)

        told = run_ranks(2, disagree)
        assert "rank 1" in told[0]


def test_a_step_costs_little_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks follow by a step's integers: its bucket, and per row a few numbers and its blocks."""
    sent: list[int] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src, group=None: sent.append(tensor.nbytes))
    monkeypatch.setattr(CompiledModel, "run", lambda *_: None)
    bucket = Bucket("decode", batch=8, chunk=1, max_blocks_per_seq=64, selection="sample")
    monkeypatch.setattr(CompiledModel, "inputs", lambda *_: make_inputs(bucket, windowed=False))
    LeadingModel.__new__(LeadingModel).run(bucket)
    print(sent)
    assert len(sent) == 2
    assert sum(sent) <= 8 * (64 * 8 + 128) + 128  # of 8 sequences of 4,096 tokens


def test_fewer_devices_than_ranks_are_refused(checkpoint: Path) -> None:
    place = Place(1, 2, 1, 2)
    assert _device_index(settings(checkpoint), place, 2) == 1
    assert _device_index(settings(checkpoint, "ranks.devices=[3,2]"), place, 4) == 2
    with pytest.raises(UserError, match=r"2 ranks need a device each, and 1 are given \(0\), of 1"):
        _device_index(settings(checkpoint), place, 1)
    with pytest.raises(UserError, match="of 2 that this machine has"):
        _device_index(settings(checkpoint, "ranks.devices=[0,2]"), place, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"2 ranks need a device each, and 1 are given \(0\)\. Give"),
        (["backend=torchair", "soc=atlas_300i_duo", "dtype=float16"], "An Atlas 300I DUO card is 2"),
    ],
)
def test_fewer_devices_than_ranks_are_refused_before_starting(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ranks share the host: on a CPU, and on the CANN stand-in."""
    monkeypatch.setattr(launch, "elastic_launch", lambda *_: pytest.fail("ranks were started"))
    monkeypatch.setattr(followers, "_start", lambda *_: pytest.fail("ranks were started"))
    given = resolve_settings(compose("infer", ["world_size=2", "ranks.devices=[0]", *overrides]))
    with pytest.raises(UserError, match=message):
        on_ranks(given, lambda: None)
    with pytest.raises(UserError, match=message), followers.lead_followers(given, "graph_gemma.runners.llm.follower"):
        pass
    with pytest.raises(UserError, match=message):
        _prepare_device(given, Place(0, 2, 0, 2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world_size=3", "num_attention_heads 8 is not a multiple"),
        ("world_size=0", "world_size is 0; it must be an integer of at least 1"),
        ("ranks.devices=[0,0]", "must be a list of different device numbers"),
        ("ranks.master_port=0", "must be a port from 1 to 65535"),
        ("ranks.timeout=0", "an integer of at least 1"),
    ],
)
def test_wrong_settings_are_refused(checkpoint: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(checkpoint, override)


def test_another_number_of_ranks_than_launched_is_refused(checkpoint: Path) -> None:
    check_place(settings(checkpoint), 2)
    with pytest.raises(UserError, match=r"world_size is 2, and the launcher \(torchrun\) started 4 ranks"):
        check_place(settings(checkpoint), 4)


def test_ranks_default_to_port_20030(checkpoint: Path) -> None:
    assert settings(checkpoint).ranks == Ranks(devices=None, master_address="127.0.0.1", master_port=20030, timeout=600)


def test_a_model_for_several_ranks_is_not_loaded_by_one(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this process is not one of its ranks"), contextlib.ExitStack() as resources:
        load_model(settings(checkpoint, f"cache_dir={tmp_path}"), resources)
    assert not torch.distributed.is_initialized()
