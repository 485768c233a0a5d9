"""Bad input to runners/infer.py: one paragraph that names the culprit, exit status 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
from support.cli import CommandResult, run_command
from support.configs import TINY_CONFIGS
from support.tokenizers import make_tokenizer

from graph_gemma.runners.infer import infer

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    make_checkpoint(directory, TINY_CONFIGS["untied_head"])
    make_tokenizer(directory)
    return directory


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> Refused:
    """Run infer.py, expect a refusal, return its message."""

    def call(*arguments: str) -> str:
        settings = [
            f"model.path={checkpoint}",
            "backend=eager",
            "verbosity=0",
            "prompt_token_ids=[[5,6,7]]",
            f"cache_dir={tmp_path / 'cache'}",
            f"output_file={tmp_path / 'out.jsonl'}",
        ]
        names = {argument.split("=", 1)[0] for argument in arguments}
        sources = {"prompts", "prompts_file", "prompt_token_ids"}
        if names & sources:
            names |= sources
        kept = [setting for setting in settings if setting.split("=", 1)[0] not in names]
        capsys.readouterr()  # what the test itself made others print
        given = [argument for argument in arguments if not argument.endswith("=<left out>")]
        result: CommandResult = run_command(infer, "infer", [*kept, *given], capsys, monkeypatch)
        assert result.status == 2, result
        assert result.stderr.startswith("error: "), result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") == 1, "the message is one paragraph"
        assert not (tmp_path / "out.jsonl").exists(), "a refused run leaves no output file"
        return result.stderr

    return call


def edit_config(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_bytes(content)


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], object]:
    """Set a tensor, or remove it."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        tensors.update({} if value is None else {name: value})

    return lambda checkpoint: edit_weights(checkpoint, change)


def cut(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "config missing": (lambda c: (c / "config.json").unlink(), ["config.json is missing"]),
    "config malformed": (write("config.json", b'{"model_type": "gemma"'), ["config.json is not valid JSON"]),
    "another model": (lambda c: edit_config(c, model_type="gemma3n"), ["model_type is 'gemma3n'"]),
    "weights truncated": (cut, ["model.safetensors"]),
    "weights of garbage": (write("model.safetensors", b"\xff" * 64), ["model.safetensors"]),
    "tensor missing": (tensor(UP, None), [UP]),
    "tensor unexpected": (tensor("extra", torch.zeros(3)), ["extra"]),
    "tensor of wrong shape": (tensor("model.norm.weight", torch.zeros(3)), ["model.norm.weight", "3"]),
    "tensor of wrong dtype": (tensor("model.norm.weight", torch.zeros(48).int()), ["model.norm.weight"]),
    "pickled weights": (
        lambda c: (c / "model.safetensors").rename(c / "pytorch_model.bin"),
        ["graph-gemma convert"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints(name: str, refused: Refused, checkpoint: Path) -> None:
    damage, words = DAMAGE[name]
    damage(checkpoint)
    message = refused()
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", -1), ("head_dim", 15), ("num_key_value_heads", 3), ("rms_norm_eps", 0), ("vocab_size", "many")],
)
def test_impossible_config_values(refused: Refused, checkpoint: Path, field: str, value: object) -> None:
    edit_config(checkpoint, **{field: value})
    message = refused()
    assert field in message
    assert str(value) in message


def test_missing_directory(refused: Refused, tmp_path: Path) -> None:
    assert f"model.path: {tmp_path / 'nowhere'} is not a directory" in refused(f"model.path={tmp_path / 'nowhere'}")


def test_shard_missing(refused: Refused, tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    make_checkpoint(directory, TINY_CONFIGS["untied_head"], sharded=True)
    shard = sorted(directory.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert shard.name in refused(f"model.path={directory}")


def test_tokenizer_absent(refused: Refused, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused("prompts=[hello]")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("prompts=['']", "prompts is ['']; it must be a list of texts"),
        ("prompt_token_ids=[[]]", "prompt_token_ids[0]: the prompt is empty"),
        ("prompt_token_ids=[[5,256]]", "the token id 256 is out of range"),
        ("prompt_token_ids=[[5,-1]]", "the token id -1 is out of range"),
        (f"prompt_token_ids=[{[5] * 512}]".replace(" ", ""), "has 512 tokens, but max_seq_len is 512"),
        ("prompts_file=nowhere.txt", "nowhere.txt cannot be read"),
        ("block_size=48", "block_size is 48; it must be 16, 32, 64 or 128"),
        ("num_blocks=3", "one sequence of max_seq_len=512 tokens needs 8"),
        ("num_blocks=1000000000", "num_blocks is 1000000000; besides the weights there is free memory for at most"),
        ("memory_fraction=1e-9", "it leaves 0 blocks"),
        ("sampling.temperature=-1", "sampling.temperature is -1"),
        ("sampling.top_p=0", "sampling.top_p is 0"),
        ("sampling.top_k=-2", "sampling.top_k is -2"),
        ("sampling.seed=-1", "sampling.seed is -1"),
        ("max_new_tokens=0", "max_new_tokens is 0"),
        ("max_batch_size=0", "max_batch_size is 0"),
        ("max_batch_size=1000000000", "max_batch_size is 1000000000: for steps of that size there is no memory"),
        ("ranks.timeout=9223372036854775807", "it must be an integer of at least 1 and at most 31536000"),
        ("max_seq_len=513", "has positions for 512 tokens"),
        ("max_prefill_tokens=100", "it must be an integer of at least 64 and a multiple of 64"),
        ("memory_fraction=1.5", "memory_fraction is 1.5"),
        ("dtype=float8", "dtype is 'float8'"),
        ("weights=none", "weights is 'none'"),
        ("backend=onnx", "backend is 'onnx'; it must be auto, eager, inductor or torchair"),
        ("backend=torchair", "soc=atlas_800i_a2"),
        ("world_size=3", "world_size is 3, which does not fit the model"),
        ("soc=atlas_800i_a2", "soc is 'atlas_800i_a2'"),
        ("passes.rotary.base=1", "There is no setting passes.rotary.base"),
        ("passes.paged_attention.enabled=false", "passes.paged_attention: this pass cannot be switched off"),
        ("stop=[a,5]", "stop is ['a', 5]"),
        ("model.path=5", "model.path: 5 is not a directory"),
        ("prompts_file=7", "prompts_file is 7; its name must end in"),
        ("sampling=null", "sampling is 'null'; it is a group of settings"),
        ("chat=maybe", "chat is 'maybe'; it must be true or false"),
        ("check=no", "check is 'no'; it must be true or false"),
        ("output_file=/nowhere/out.jsonl", "the directory /nowhere does not exist"),
        ("dump_dir=/proc/dumps", "dump_dir: /proc/dumps cannot be created"),
    ],
)
def test_bad_settings(argument: str, expected: str, refused: Refused) -> None:
    assert expected in refused(argument)


def test_named_size_without_a_checkpoint(refused: Refused) -> None:
    assert "model=gemma_7b needs the directory" in refused("model=gemma_7b", "model.path=<left out>")


def test_a_size_that_has_no_name_here(refused: Refused) -> None:
    message = refused("model.name=gemma_9b", "weights=random", "model.path=<left out>")
    assert "model.name is 'gemma_9b'; it must be demo, gemma_2b, gemma_7b, gemma2_2b, " in message


def test_malformed_line_of_a_prompts_file_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    assert f"{path}, line 2" in refused(f"prompts_file={path}")


def test_inductor_without_a_compiler(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert "no C++ compiler" in refused("backend=inductor")


def test_auto_without_a_compiler_takes_eager_and_says_so(
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    arguments = [f"model.path={checkpoint}", "prompt_token_ids=[[5]]", "max_new_tokens=2", f"cache_dir={tmp_path}"]
    result = run_command(infer, "infer", arguments, capsys, monkeypatch)
    assert result.status == 0, result.stderr
    assert "eager on cpu (no C++ compiler was found" in result.stdout


def test_cache_directory_that_others_can_write_to(refused: Refused, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "is writable by others" in refused(f"cache_dir={shared}", "backend=inductor")


def test_cache_directory_that_cannot_be_made(refused: Refused) -> None:
    assert "cache_dir: /proc/cache cannot be used" in refused("cache_dir=/proc/cache", "backend=inductor")
