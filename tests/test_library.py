"""import graph_gemma: its names, that it is imported in no time, and LLM as a library's user calls it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT

import graph_gemma
from graph_gemma import LLM, SamplingParams, UserError

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
WITH_TOOLS = "{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}" + TEMPLATE
HEAVY = "{'torch', 'transformers', 'hydra', 'omegaconf', 'sympy', 'tokenizers'} & sys.modules.keys()"
ONE = "One day Grace"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The demo, with the backend that compiles nothing."""
    with LLM(backend="eager", cache_dir=tmp_path_factory.mktemp("cache"), verbosity=0) as model:
        yield model


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_names_that_are_promised_are_there_and_documented() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for name in graph_gemma.__all__:
        assert getattr(graph_gemma, name) is not None
        assert f"`{name}" in page
    methods = [name for name in vars(LLM) | vars(LLM.__mro__[1]) if not name.startswith("_")]
    assert [name for name in methods if f"`{name}" not in page] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        graph_gemma.Nothing  # noqa: B018


def test_a_checkers_names_are_those_at_run_time() -> None:
    """The imports for type checkers and the table of what is imported on demand say the same."""
    text = (ROOT / "__init__.py").read_text(encoding="utf-8").partition("if TYPE_CHECKING:")[2]
    checked = ", ".join(re.findall(r"^    from graph_gemma.* import (.+)$", text, re.MULTILINE)).split(", ")
    assert sorted([*checked, "__version__"]) == sorted(graph_gemma.__all__)


@pytest.mark.parametrize("names", ["import graph_gemma", "from graph_gemma import LLM, SamplingParams, UserError"])
def test_importing_imports_nothing_heavy(names: str) -> None:
    result = run(f"{names}\nimport sys\nprint({HEAVY})")
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_the_version_is_the_distributions() -> None:
    assert 'version = { attr = "graph_gemma.__version__" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d+\.\d+\.\d+", graph_gemma.__version__)


def test_torch_does_not_load_torch_npu_after_it() -> None:
    result = run("import graph_gemma, os; print(os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'])")
    assert result.stdout == "0\n"


def test_generate_takes_parameters_by_name(llm: LLM) -> None:
    named = llm.generate(ONE, max_tokens=8)
    assert named[0].token_ids == llm.generate([ONE], SamplingParams(max_new_tokens=8))[0].token_ids
    assert len(named[0].token_ids) == 8
    sampled = llm.generate(ONE, max_tokens=8, temperature=1.0, seed=5, ignore_eos=True)
    assert sampled[0].seed == 5
    with pytest.raises(UserError, match=r"There is no sampling parameter max_length\. There are temperature, "):
        llm.generate(ONE, max_length=8)
    with pytest.raises(UserError, match="sampling and max_tokens are given"):
        llm.generate(ONE, SamplingParams(), max_tokens=8)


def test_max_tokens_is_another_name_of_max_new_tokens() -> None:
    assert SamplingParams(max_tokens=7) == SamplingParams(max_new_tokens=7)
    with pytest.raises(UserError, match="max_tokens is 7 and max_new_tokens 9"):
        SamplingParams(max_tokens=7, max_new_tokens=9)
    with pytest.raises(UserError, match="max_tokens is 0"):
        SamplingParams(max_tokens=0)


def test_a_chat_is_its_template_and_then_generate(llm: LLM) -> None:
    message = {"role": "user", "content": ONE}
    first, second = llm.chat([[message], [message, message]], chat_template=TEMPLATE, max_tokens=4)
    ids = llm.tokenizer(ONE, add_special_tokens=False).input_ids
    assert first.prompt_token_ids == ids
    assert second.prompt_token_ids == llm.tokenizer(ONE + ONE, add_special_tokens=False).input_ids
    assert first.token_ids == llm.generate(ids, max_tokens=4)[0].token_ids
    assert llm.chat([message], chat_template=TEMPLATE, max_tokens=4)[0].token_ids == first.token_ids


def test_a_chat_streams_as_it_generates(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Tell me a story about Sam."}]
    *_, last = llm.stream(chat, max_tokens=6)
    assert last.result is not None
    assert last.result.token_ids == llm.chat(chat, max_tokens=6)[0].token_ids


def test_tools_need_a_template_with_a_place_for_them(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": ONE, "description": "Nothing.", "parameters": {}}}
    chat = [{"role": "user", "content": ""}]
    (result,) = llm.chat(chat, tools=[tool], chat_template=WITH_TOOLS, max_tokens=1)
    assert result.prompt_token_ids == llm.tokenizer(ONE, add_special_tokens=False).input_ids
    with pytest.raises(UserError, match="the chat template has no place for them"):
        llm.chat(chat, tools=[tool])


@pytest.mark.parametrize("messages", [[{"role": "user"}, "text"], [{"content": "no role"}]])
def test_a_malformed_message_is_shown(llm: LLM, messages: list[dict[str, str]]) -> None:
    with pytest.raises(UserError, match=r"chat: a message is .*each must be a dictionary with 'role' and 'content'"):
        llm.chat(messages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "google/gemma-2b"}, r"no such directory\. Nothing is downloaded.*hf download google/gemma-2b"),
        ({"model": "gemma_2b"}, r"model=gemma_2b needs the directory of its checkpoint"),
        ({"model": "/no/such"}, r"model\.path: /no/such is not a directory"),
        ({"dtyp": "float32"}, r"no setting dtyp\. Did you mean dtype\?"),
        ({"dtype": "float64"}, r"dtype is 'float64'; it must be float16, bfloat16 or float32"),
        ({"max_seq_len": "many"}, r"max_seq_len is 'many'; it must be an integer"),
        ({"quant": "w9"}, r"quant is 'w9'; it must be one of none, w8a8"),
        ({"quant": {"schem": "w8a16"}}, r"no setting quant\.schem\. Did you mean quant\.scheme"),
        ({"passes": {"rotry": False}}, r"passes\.rotry: there is no such thing"),
        ({"passes": {"rotary": 1}}, r"passes\.rotary\.enabled is 1; it must be true or false"),
        ({"max_tokens": 5}, r"max_tokens belongs to a request.*llm\.generate\(PROMPTS, max_tokens=5\)"),
        ({"prompts": ["a"]}, r"prompts is a setting of graph-gemma infer alone"),
        ({"model_path": "x"}, r"no setting model_path\. Write model\.path=DIR"),
    ],
)
def test_wrong_keywords_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LLM(**arguments)  # type: ignore[arg-type]


def test_keywords_are_the_settings_of_the_command_line(tmp_path: Path) -> None:
    keywords = LLM(
        backend="eager",
        cache_dir=tmp_path,
        max_seq_len=256,
        quant={"scheme": "w8a8_dynamic", "keep_float": ("lm_head",), "kv8": True},
        passes={"rotary": False, "add_rms_norm": {"enabled": False}},
        ranks={"timeout": 5},
        verbosity=0,
    )
    listed = LLM(
        [
            *("backend=eager", f"cache_dir={tmp_path}", "max_seq_len=256", "ranks.timeout=5", "verbosity=0"),
            *("quant.scheme=w8a8_dynamic", "quant.keep_float=[lm_head]", "quant.kv8=true"),
            *("passes.rotary.enabled=false", "passes.add_rms_norm.enabled=false"),
        ]
    )
    assert keywords.settings == listed.settings
    keywords.close()
    listed.close()


def test_the_first_call_says_what_it_is_doing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLM(backend="eager", cache_dir=tmp_path) as llm:
        llm.generate(ONE, max_tokens=2)
    said = capsys.readouterr().err
    for phase in ("importing torch", "opening ", "capturing and rewriting step prefill-b1-t64", "reading weights"):
        assert f"graph-gemma: {phase}" in said
    assert "graph-gemma: compiling step 1 of 1\n" in said
