"""compare.py shows a checkpoint that ModelSlim's smoothing broke and whose files show no trace of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cli import run_command
from support.modelslim_smoothing import write_smoothed

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
from graph_gemma.runners.compare import compare
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.world import calibration_texts
from graph_gemma.runners.io.tokenizer import load_tokenizer

SETTINGS = ["backend=eager", f"a=[model.path={CHECKPOINT_DIR}]", "prompts=['One day Grace','Tell me about Sam.']"]


@pytest.mark.usefixtures("sides_here")
def test_broken_weights_show_as_other_tokens_and_a_large_kl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(CHECKPOINT_DIR)
    ids = [tokenizer(text).input_ids for text in calibration_texts(8)]
    write_smoothed(CHECKPOINT_DIR, tmp_path / "smoothed", ids)
    linears = select_linears(read_config(CHECKPOINT_DIR), ["down_proj", "lm_head"])
    options = QuantizerOptions(Quantization("w8a8", linears, stored=True), smooth=False, dialect="vllm_ascend")
    agreement, mean_kl = [], []
    for source in (CHECKPOINT_DIR, tmp_path / "smoothed"):
        target = tmp_path / f"{source.name}-w8a8"
        quantize_checkpoint(source, target, options, ids)
        places = [f"cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path / 'results'}"]
        arguments = [*SETTINGS, f"b=[model.path={target}]", "max_new_tokens=16", *places]
        result = run_command(compare, "compare", arguments, capsys, monkeypatch)
        assert result.status == 0, result.stderr
        assert "rule:             none, the sides differ in precision" in result.stdout
        agreement.append(float(re.findall(r"token agreement: +([\d.]+)%", result.stdout)[0]))
        mean_kl.append(float(re.findall(r"KL\(a \|\| b\): +mean ([\d.e+-]+),", result.stdout)[0]))
    assert agreement[0] > 90
    assert agreement[1] < 30
    assert mean_kl[1] > 100 * mean_kl[0]
