"""The command line: texts as written, lists as Hydra writes them, and every mistake refused with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.settings.declared import COMMANDS, settings_of
from graph_gemma.runners.settings.overrides import Overrides, read

INFER = settings_of("infer")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.text("'\"\\$[]{},= a", min_size=1)


def value(argument: str, command: str = "infer") -> Any:
    (found,) = read(settings_of(command), [argument]).values.values()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "/data/gemma (v2)/x",
        "/data/a,b:c=d/模型",
        "C:\\models\\gemma",
        "$HOME/${name}/${oc.env:HOME}",
        "it's [one] {two}",
        "7",
        "true",
        "--x",
        " spaces ",
        "a'b\"c",
    ],
)
def test_a_text_is_what_follows_the_first_equals_sign(text: str) -> None:
    assert compose("infer", [f"model.path={text}"]).model.path == text
    assert compose("infer", [f"chat_template={text}"]).chat_template == text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        (r"'it\'s'", "it's"),
        (r"'C:\dir\\'", "C:\\dir\\"),
        (r"'a\\\'b'", r"a\'b"),
        ("'null'", "null"),
        ("'a' b", "'a' b"),
        ("'open", "'open"),
    ],
)
def test_a_text_in_quotes_is_what_they_enclose(written: str, text: str) -> None:
    assert value(f"model.path={written}") == text


def test_null_is_no_text() -> None:
    assert value("model.path=null") is None


@given(TEXTS)
def test_any_text_is_taken_as_written(text: str) -> None:
    assume(text.strip().lower() != "null" and text[0] not in "'\"")
    assert value(f"model.path={text}") == text


@given(TEXTS | st.lists(TEXTS, max_size=4))
def test_hydra_and_omegaconf_change_no_text(text: Any) -> None:
    (argument,) = Overrides({"prompts": text}, [], [], False).as_hydra()
    parsed = OverridesParser.create().parse_override(argument).value()
    assert OmegaConf.to_container(OmegaConf.create({"prompts": parsed}), resolve=True) == {"prompts": text}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("prompts=['a b', \"c, d\", e f]", ["a b", "c, d", "e f"]),
        ("prompts=['it\\'s ${x}']", ["it's ${x}"]),
        ("prompts=[你好, (v2): x=y]", ["你好", "(v2): x=y"]),
        ("prompts=Hello, ${name}!", "Hello, ${name}!"),
        ("prompts=[]", []),
        ("prompt_token_ids=[[2, 5],[7]]", [[2, 5], [7]]),
        ("stop=[a]", ["a"]),
        ("sampling.temperature=1e-1", 0.1),
        ("max_batch_size=4", 4),
        ("check=TRUE", True),
    ],
)
def test_values_are_read_as_hydra_writes_them(argument: str, expected: Any) -> None:
    assert value(argument) == expected


def test_settings_of_a_side_need_no_quotes() -> None:
    assert value("a=[dtype=float32, quant.keep_float=[x,y]]", "compare") == ["dtype=float32", "quant.keep_float=[x,y]"]
    assert value("b=transformers", "compare") == "transformers"


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("prompts=['a','b'", "its ] is missing"),
        ("prompts=['a','b]", "the quote before 'b]' is not closed"),
        ("prompts=['a' 'b']", "a comma or ] is missing"),
        ("prompts=[What's up]", "there is a quote within"),
        ("prompts=['a'] b", "after its end stands ' b'"),
        ("prompts=[a,,b]", "an entry is empty"),
    ],
)
def test_a_malformed_list_says_how_to_write_it(argument: str, why: str) -> None:
    with pytest.raises(UserError) as error:
        read(INFER, [argument])
    assert "prompts is no list" in str(error.value)
    assert why in str(error.value)
    assert "\"prompts=['a','b']\"" in str(error.value)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("model_path", "model.path=DIR"),
        ("input_texts", "prompts=['A','B']"),
        ("max_output_length", "max_new_tokens=N"),
        ("is_chat_model", "chat=true"),
        ("max_bach_size", "max_batch_size"),
        ("temperature", "sampling.temperature"),
        ("sampling.topp", "sampling.top_p"),
        ("passes.rotry.enabled", "passes.rotary.enabled"),
    ],
)
def test_unknown_settings_are_refused_naming_the_one_meant(prefix: str, name: str, instead: str) -> None:
    with pytest.raises(UserError) as error:
        read(INFER, [f"{prefix}{name}=1"])
    assert f"There is no setting {name}." in str(error.value)
    assert instead in str(error.value)
    assert "+" not in str(error.value).replace(f"{prefix}{name}", "")


@pytest.mark.parametrize("argument", ["+max_batch_size=4", "++max_batch_size=4", "~max_batch_size", "max_batch_size"])
def test_a_known_setting_with_a_prefix_says_how_it_is_written(argument: str) -> None:
    with pytest.raises(UserError, match="a setting is written max_batch_size=VALUE"):
        read(INFER, [argument])


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("--model_path", "model.path=DIR"),
        ("--max-batch-size=3", "max_batch_size=VALUE"),
        ("--ignore_eos", "ignore_eos=VALUE"),
        ("--input_texts", "prompts=['A','B']"),
        ("--nothing", "NAME=VALUE"),
    ],
)
def test_arguments_with_dashes_are_refused(argument: str, instead: str) -> None:
    with pytest.raises(UserError) as error:
        read(INFER, [argument, "X"])
    assert "without dashes" in str(error.value)
    assert instead in str(error.value)


def test_a_word_is_no_setting() -> None:
    with pytest.raises(UserError, match="'hello' is no setting"):
        read(INFER, ["hello"])


@pytest.mark.parametrize("argument", ["model=gemma_9b", "quant=int4", "passes=none"])
def test_unknown_options_of_a_group_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        read(INFER, [argument])


@pytest.mark.parametrize("argument", ["sampling=3", "ranks={timeout: 3}"])
def test_a_group_is_no_value(argument: str) -> None:
    with pytest.raises(UserError, match="is a group of settings"):
        read(INFER, [argument])


def refusal(command: str, argument: str) -> str:
    try:
        read(settings_of(command), [argument])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", COMMANDS)
def test_huge_values_are_cut_in_messages(command: str) -> None:
    for name in ("x", "passes", "model", "soc", "max_batch_size", "sampling.seed", "block_size"):
        for text in ("9" * 10**6, "y" * 10**6, "[" * 10_000, f"['{'z' * 10**6}'"):
            assert len(refusal(command, f"{name}={text}")) < 1000
    with pytest.raises(UserError) as error:
        read(settings_of(command), ["n" * 10**6 + "=1"])
    assert len(str(error.value)) < 1000


def test_hydras_own_options_are_left_to_hydra(tmp_path: Path) -> None:
    found = read(INFER, ["--cfg", "job", "hydra.verbose=true", "-cd", str(tmp_path), "model=mine"])
    assert found.hydra == ["--cfg", "job", "hydra.verbose=true", "-cd", str(tmp_path)]
    assert found.values == {"model": "mine"}


def test_multirun_leaves_choices_to_hydra() -> None:
    found = read(INFER, ["-m", "max_batch_size=1,2", "prompts=['${x}']"])
    assert found.as_hydra() == ["-m", "max_batch_size=1,2", "prompts=['\\${x}']"]
    with pytest.raises(UserError, match="There is no setting foo"):
        read(INFER, ["-m", "foo=1,2"])
