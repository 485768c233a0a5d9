"""conf/ is what is declared: its files are written by a command, and Hydra composes the declared defaults of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.settings.composing import is_as_declared
from graph_gemma.runners.settings.conf_files import CONF, conf_files
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.schema import Settings

FILES = conf_files()


def test_there_are_no_other_files() -> None:
    assert {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_is_declared(name: str) -> None:
    written = (CONF / name).read_text(encoding="utf-8")
    assert written == FILES[name], "run python -m graph_gemma.runners.settings.conf_files"


def test_there_is_a_declaration_for_every_command() -> None:
    runners = Path(CONF).parent / "runners"
    assert set(COMMANDS) | {"lm_eval_cli"} == {path.stem for path in runners.glob("[!_]*.py")}


REQUIRED = {"convert": "model.path=m.gguf", "export": "export_dir=e", "quantize": "output_dir=o"}
BY_HYDRA = "hydra.verbose=false"  # any setting of its own makes it compose
SOME = (
    "dtype=float32",
    "quant=w8a8",
    "quant.kv8=true",
    "passes.rotary.enabled=false",
    "ranks.timeout=5",
    "max_seq_len=9",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_hydra_composes_the_declared_defaults(command: str) -> None:
    given = [REQUIRED[command]] if command in REQUIRED else []
    assert values_of(compose(command, [BY_HYDRA, *given])) == values_of(compose(command, given))


def test_hydra_composes_the_same_of_overrides() -> None:
    assert values_of(compose("infer", [BY_HYDRA, *SOME])) == values_of(compose("infer", SOME))
    assert compose("infer", SOME).quant.keep_float == ("down_proj", "lm_head")


def values_of(settings: Settings) -> dict[str, object]:
    return {name: value for name, value in vars(settings).items() if name != "given"}


def test_files_that_a_user_has_changed_count(tmp_path: Path) -> None:
    conf = shutil.copytree(CONF, tmp_path / "conf")
    assert is_as_declared(settings_of("infer"), str(conf))
    (conf / "quant" / "w8a16.yaml").write_text("scheme: w8a16\n", encoding="utf-8")
    assert not is_as_declared(settings_of("infer"), str(conf))
    assert is_as_declared(settings_of("prune"), str(conf))
    (conf / "prune.yaml").unlink()
    assert not is_as_declared(settings_of("prune"), str(conf))


@pytest.mark.parametrize(("command", "missing"), [("export", "export_dir"), ("quantize", "output_dir")])
def test_what_has_no_default_must_be_given(command: str, missing: str) -> None:
    with pytest.raises(Exception, match=f"{missing} is not set; it is the directory to write. Give {missing}=VALUE"):
        compose(command)
