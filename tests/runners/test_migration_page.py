"""docs/migration.md names settings that exist, and says "planned" of the others."""

import re
from pathlib import Path

from runners.entry import CONF
from runners.help_text import settings_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"


def test_settings_of_this_version_exist() -> None:
    commands = ("infer", "convert", "quantize", "evaluate", "benchmark")
    known = {s.name for command in commands for s in settings_of(CONF, CONF / f"{command}.yaml")}
    named = set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        ours = line.split("|", 2)[2] if line.startswith("|") else ""
        ours = re.split("planned", ours)[0]
        named |= set(re.findall(r"`([a-z_.]+)=", ours))
    assert len(named) > 20
    assert named <= known


def test_every_setting_of_the_dialogue_command_that_the_reference_has_is_mapped() -> None:
    flags = "model_path input_texts input_ids input_file max_batch_size max_prefill_batch_size max_input_length "
    flags += "max_output_length max_position_embeddings max_prefill_tokens block_size chat_template ignore_eos "
    flags += "is_chat_model"
    page = PAGE.read_text(encoding="utf-8")
    assert [flag for flag in flags.split() if f"`--{flag}" not in page] == []
    variables = "ASCEND_RT_VISIBLE_DEVICES MASTER_PORT ATB_LAYER_INTERNAL_TENSOR_REUSE INF_NAN_MODE_ENABLE "
    variables += "ATB_OPERATION_EXECUTE_ASYNC TASK_QUEUE_ENABLE ATB_CONVERT_NCHW_TO_ND ATB_WORKSPACE_MEM_ALLOC_GLOBAL "
    variables += "ATB_CONTEXT_WORKSPACE_SIZE"
    assert [name for name in variables.split() if f"`{name}" not in page] == []
