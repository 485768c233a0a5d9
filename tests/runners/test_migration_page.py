"""docs/migration.md names settings that exist, maps what the reference's commands have, and promises nothing stale."""

import re
from pathlib import Path

from graph_gemma.graph_model.chips.registry import CHIPS
from graph_gemma.runners.backends.select import NAMES
from graph_gemma.runners.settings.declared import settings_of
from graph_gemma.runners.settings.mindie import FLAGS
from graph_gemma.runners.settings.schema import names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"
COMMANDS = ("infer", "convert", "quantize", "evaluate", "benchmark")
SETTINGS = {name for command in COMMANDS for name in names(settings_of(command))}


def test_settings_exist() -> None:
    named = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        ours = line.split("|", 2)[2] if line.startswith("|") else ""
        named |= set(re.findall(r"`([a-z_.]+)=", ours.split("planned")[0]))
    assert len(named) > 20
    assert named <= SETTINGS


def wrongly_planned(text: str) -> list[str]:
    """What exists and stands in a line that calls something planned."""
    existing = SETTINGS | set(CHIPS) | set(NAMES) | set(COMMANDS) | {"torchrun", "chips", "scoring", "tensor"}
    lines = [line for line in text.splitlines() if "planned" in line]
    return [word for line in lines for word in re.findall(r"[\w.]+", line) if word in existing]


def test_what_exists_is_not_called_planned() -> None:
    assert wrongly_planned(PAGE.read_text(encoding="utf-8")) == []
    assert wrongly_planned("| `chat` | planned |\n| several | torchrun (planned) |") == ["chat", "torchrun"]
    assert wrongly_planned("| several chips | torchrun |\n| beams | planned |") == []


def test_every_argument_of_the_other_commands_is_mapped() -> None:
    quantization = "-src -dst -type"
    accuracy = "pa_fp16 pa_bf16 full_BoolQ shots gemma max_position_embedding chat"
    performance = "performance performance_maxbs batch_range time_limit prefill_batch_size dataset"
    page = PAGE.read_text(encoding="utf-8")
    mapped = {name for line in page.splitlines() for name in re.findall(r"`(-?\w+)", line)}
    # The headings name the commands that these are arguments of.
    mapped |= set(re.findall(r"modeltest/run.sh pa_fp16 (\w+)", page))
    assert [name for name in f"{quantization} {accuracy} {performance}".split() if name not in mapped] == []


def test_every_setting_of_the_reference_dialogue_is_mapped() -> None:
    flags = "model_path input_texts input_ids input_file max_batch_size max_prefill_batch_size max_input_length "
    flags += "max_output_length max_position_embeddings max_prefill_tokens block_size chat_template ignore_eos "
    flags += "is_chat_model"
    page = PAGE.read_text(encoding="utf-8")
    assert [flag for flag in flags.split() if f"`--{flag}" not in page] == []
    variables = "ASCEND_RT_VISIBLE_DEVICES MASTER_PORT ATB_LAYER_INTERNAL_TENSOR_REUSE INF_NAN_MODE_ENABLE "
    variables += "ATB_OPERATION_EXECUTE_ASYNC TASK_QUEUE_ENABLE ATB_CONVERT_NCHW_TO_ND ATB_WORKSPACE_MEM_ALLOC_GLOBAL "
    variables += "ATB_CONTEXT_WORKSPACE_SIZE"
    assert [name for name in variables.split() if f"`{name}" not in page] == []


def test_an_error_calls_an_argument_as_the_page_does() -> None:
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for argument, ours in FLAGS.items():
        setting = re.match(r"[a-z_.0-9]+", ours)
        assert setting is not None
        assert setting[0] in SETTINGS
        cells = [row[2:] for row in rows if re.search(rf"`-{{0,2}}{argument}\b| -{{1,2}}{argument}\b", row[1])]
        assert any(re.search(rf"\b{re.escape(setting[0])}\b", cell) for row in cells for cell in row), argument
