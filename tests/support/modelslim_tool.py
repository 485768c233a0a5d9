"""Makes checkpoints with the real ModelSlim, and reads ours: python modelslim_tool.py MODELS OURS OUTPUT, in an
environment that has the tool.

MODELS holds a Gemma in each dtype, and small ones, which the default command quantizes. OUTPUT gets a directory NAME
for each checkpoint, for most also NAME.safetensors: the logits of the tool's own fake-quantized model for the ids of
MODELS/ids.json. Of the checkpoints in OURS it gets the logits that the tool's reader gives. made.json says what was
made or read and what failed.
Nothing of this project is imported: msmodelslim and our package need not live in one environment.
"""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from msmodelslim.cli.__main__ import main as command
from msmodelslim.core.quant_service.modelslim_v1.save.ascendv1 import AscendV1Saver
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, FakeQuantizeCalibrator, QuantConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

DTYPES = ("float32", "bfloat16", "float16")
WEIGHT = {"scope": "per_channel", "dtype": "int8", "symmetric": True, "method": "minmax"}
ACTIVATIONS: dict[str, dict[str, Any] | None] = {
    "w8a8": {"scope": "per_tensor", "dtype": "int8", "symmetric": False, "method": "minmax"},
    "w8a8_dynamic": {"scope": "per_token", "dtype": "int8", "symmetric": True, "method": "minmax"},
    "w8a16": None,
    "w8a8_mix": {"scope": "pd_mix", "dtype": "int8", "symmetric": False, "method": "minmax"},
}
OLDER = {
    "w8a8": {"a_bit": 8},
    "w8a8_dynamic": {"a_bit": 8, "is_dynamic": True},
    "w8a16": {"a_bit": 16},
}
TEXTS = ("One day Grace went to the kitchen.", "One day Max took a red kite.", "Tell me a story about Sam.")
_saved: list[torch.nn.Module] = []
_post_run = AscendV1Saver.post_run


def _keep(saver: AscendV1Saver) -> None:
    _post_run(saver)
    _saved.append(saver.model)


@torch.no_grad()
def save_logits(model: torch.nn.Module, ids: list[list[int]], path: Path) -> None:
    """In float32: fake-quantized linears of the newer generation give float32 to those that want the model's dtype."""
    model.float()
    rows = {str(i): model(torch.tensor([row])).logits[0].float().contiguous() for i, row in enumerate(ids)}
    save_file(rows, path)


def newer(model: Path, target: Path, *arguments: str) -> torch.nn.Module | None:
    """Run the command `msmodelslim quant`; the fake-quantized model that it saved."""
    _saved.clear()
    sys.argv = ["msmodelslim", "quant", "--model_type", "Gemma", "--model_path", str(model)]
    sys.argv += ["--save_path", str(target), "--device", "cpu", *arguments]
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"the command ended with {end.code}") from None
    return _saved[0] if _saved else None


def recipe(output: Path, scheme: str, *first: dict[str, Any]) -> str:
    texts = output / "calibration.jsonl"
    texts.write_text("\n".join(json.dumps({"inputs_pretokenized": text}) for text in TEXTS))
    act = ACTIVATIONS[scheme]
    qconfig = {"weight": WEIGHT} if act is None else {"act": act, "weight": WEIGHT}
    process = [*first, {"type": "linear_quant", "qconfig": qconfig, "include": ["*"], "exclude": ["*lm_head*"]}]
    save = [{"type": "ascendv1_saver", "part_file_size": 4}]
    spec = {"process": process, "runner": "model_wise", "save": save, "dataset": str(texts)}
    path = output / f"{scheme}-{len(first)}.yaml"
    path.write_text(yaml.safe_dump({"apiversion": "modelslim_v1", "spec": spec}))
    return str(path)


def older(model: Path, target: Path, ids: list[list[int]], scheme: str, smooth: str | None = None) -> None:
    """Quantize with the classes of `llm_ptq`, and write what they write; config and tokenizer are copied by hand."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    # It writes a tied head a second time, which safetensors refuses if it shares memory.
    loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.detach().clone())
    data = [[torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)] for row in ids]
    if smooth is not None:
        anti_outlier = AntiOutlierConfig(w_bit=8, a_bit=8, anti_method=smooth, dev_type="cpu")
        AntiOutlier(loaded, calib_data=data, cfg=anti_outlier, norm_class_name="GemmaRMSNorm").process()
    config = QuantConfig(
        w_bit=8, dev_type="cpu", disable_names=["lm_head"], mm_tensor=False, w_sym=True, **OLDER[scheme]
    )
    calibrator = Calibrator(loaded, config, calib_data=data, disable_level="L0")
    calibrator.run()
    calibrator.save(str(target), save_type=["safe_tensor"])
    save_logits(loaded, ids, target.with_suffix(".safetensors"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, target / name)


def read(original: Path, checkpoint: Path, ids: list[list[int]], target: Path) -> None:
    """The logits of the tool's own reader, which checks names and puts the linears into the original model."""
    [description] = (json.loads(path.read_text()) for path in checkpoint.glob("quant_model_description*.json"))
    [tensors] = (load_file(path) for path in checkpoint.glob("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(original, dtype="float32").eval()
    save_logits(FakeQuantizeCalibrator(model, None, "cpu", description, tensors).model, ids, target)


def main() -> None:
    models, ours, output = (Path(argument).resolve() for argument in sys.argv[1:])
    ids = json.loads((models / "ids.json").read_text())
    builtins.input = lambda *_: "y"  # it asks before it takes its default
    AscendV1Saver.post_run = _keep
    made: dict[str, str | None] = {}

    def attempt(name: str, make: Callable[[Path], object]) -> None:
        try:
            make(output / name)
            made[name] = None
        except Exception as error:
            made[name] = f"{type(error).__name__}: {error}"
        (output / "made.json").write_text(json.dumps(made, indent=2))
        print(name, made[name] or "made", flush=True)

    def plain(target: Path, dtype: str, scheme: str) -> None:
        model = newer(models / dtype, target, "--config_path", recipe(output, scheme))
        assert model is not None
        save_logits(model, ids, target.with_suffix(".safetensors"))

    for dtype in DTYPES:
        for scheme in OLDER:
            attempt(f"newer-{scheme}-{dtype}", lambda to, d=dtype, s=scheme: plain(to, d, s))
            attempt(f"older-{scheme}-{dtype}", lambda to, d=dtype, s=scheme: older(models / d, to, ids, s))
    attempt("newer-w8a8_mix", lambda to: newer(models / "float32", to, "--config_path", recipe(output, "w8a8_mix")))
    smoothed = recipe(output, "w8a8_dynamic", {"type": "iter_smooth", "include": ["*"]})
    attempt("newer-iter_smooth", lambda to: newer(models / "float32", to, "--config_path", smoothed))
    rotated = recipe(output, "w8a8", {"type": "quarot"})
    attempt("newer-quarot", lambda to: newer(models / "float32", to, "--config_path", rotated))
    for method in ("m1", "m2", "m4"):
        attempt(f"older-{method}", lambda to, m=method: older(models / "float32", to, ids, "w8a8", m))
    for path in sorted(ours.iterdir()):
        dtype = path.name.rpartition("-")[2]
        attempt(path.name, lambda to, p=path, d=dtype: read(models / d, p, ids, to.with_suffix(".safetensors")))
    for dtype in ("float32", "bfloat16"):
        attempt(f"default-{dtype}", lambda to, d=dtype: newer(models / f"small-{d}", to, "--quant_type", "w8a8"))


if __name__ == "__main__":
    main()
