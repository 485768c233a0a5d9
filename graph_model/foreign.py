"""Recognize adapters (PEFT), other tools' quantization and other frameworks' files, for errors that name the way out.

Nothing here reads weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.json_file import read_json_object

_WAY_OUT = (
    "Give the 16-bit original (of a fine-tune: its adapter merged into the 16-bit base). It can be quantized here: at "
    "load with quant=w8a16 or quant=w8a8_dynamic, or once with graph-gemma quantize."
)
# Adapters that hold no change of the weights, but tokens or states of their own.
_NOT_MERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
# What tensors of other quantizers are called, or which dtype they have, in the order of how telling they are.
_TENSOR_MARKS = (
    (r".*\.(SCB|weight_format)|.*\.quant_state\.bitsandbytes__\w+|.*\.weight\.(absmax|quant_map)", "bitsandbytes"),
    (r".*\.(g_idx|qzeros|qweight)", "GPTQ or AWQ"),
    (r".*\.biases", "MLX"),
    (r".*\.weight_scale_2", "ModelOpt"),
    (r".*\.weight_packed|.*\.weight_shape|.*\.weight_global_scale", "compressed-tensors"),
    (r".*\.weight_scale_inv", "fine-grained FP8"),
    (r".*\._data|.*\.(weight_qtype|output_scale)", "quanto"),
    (r".*\.W_q", "HQQ"),
)
CONVERT_GGUF = "make a directory of one with graph-gemma convert model.path=FILE.gguf output_dir=NEW"
# Files of other frameworks that may be all that a directory holds: pattern, what they are, the way out.
_OTHER_FILES = (
    ("*.gguf", "GGUF files of llama.cpp", CONVERT_GGUF),
    ("*.weights.h5", "Keras weights", "export them with keras_hub: model.export_to_transformers(DIR)"),
    ("task.json", "files of a Keras preset", "export it with keras_hub: model.export_to_transformers(DIR)"),
    ("_METADATA", "files of JAX (Orbax)", "take the Hugging Face safetensors of the same model"),
    ("flax_model*.msgpack", "Flax weights", "convert them with transformers: from_pretrained(DIR, from_flax=True)"),
    ("tf_model*.h5", "TensorFlow weights", "convert them with transformers: from_pretrained(DIR, from_tf=True)"),
    ("*.ckpt", "checkpoints of gemma_pytorch", "take the Hugging Face safetensors of the same model"),
    ("*.pth", "PyTorch files of another layout", "take the Hugging Face safetensors of the same model"),
    ("*.onnx", "ONNX files", "take the Hugging Face safetensors that it was exported from"),
    ("checkpoint-*", "training checkpoints in folders", "give the folder of one of them, as in model.path=DIR/NAME"),
    ("*.distcp", "shards of a training checkpoint (FSDP)", "merge it first: accelerate merge-weights DIR NEW"),
    ("zero_to_fp32.py", "a training checkpoint's files (DeepSpeed)", "merge it first: python zero_to_fp32.py . NEW"),
)


def check_adapter(directory: Path) -> None:
    """Raise UserError if the directory holds an adapter of PEFT, which changes a base model and is not a model."""
    path = directory / "adapter_config.json"
    weights = sorted(directory.glob("adapter_model*")) if path.is_file() else []
    if not weights:
        return
    raw = read_json_object(path)
    base, kind = raw.get("base_model_name_or_path"), str(raw.get("peft_type", "LORA"))
    if kind in _NOT_MERGEABLE:
        way_out = f"An adapter of the kind {kind} cannot be merged into weights, and is not supported."
    else:
        way_out = (
            "Merge it into its base first, with PEFT: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload()"
            ".save_pretrained(NEW); copy the tokenizer's files to NEW and give model.path=NEW."
        )
    if any(directory.glob("model*.safetensors")):
        way_out += f" If the weights next to it are merged already, remove {path.name} and {weights[0].name}."
    raise UserError(
        f"{directory} holds an adapter ({kind}, {weights[0].name}) of the base model {shown(base)}, not a model of its "
        f"own. {way_out}"
    )


def check_quantization_config(raw: Mapping[str, Any], source: str) -> None:
    """Raise UserError if a config.json, of which `raw` is the content, says that another tool quantized the weights."""
    for field in ("quantization_config", "compression_config", "quantization"):
        if not (found := raw.get(field)):
            continue
        bits = {"load_in_8bit": "8 bit", "load_in_4bit": "4 bit"}
        values = found if isinstance(found, dict) else {}
        width = next((width for name, width in bits.items() if values.get(name) is True), None)
        unnamed = "MLX" if field == "quantization" else "a method that it does not name"
        method = values.get("quant_method") or (width and "bitsandbytes") or unnamed
        details = [width, values.get("format"), values.get("bits") and f"{values['bits']} bit"]
        text = ", ".join(str(detail) for detail in details if detail)
        raise UserError(
            f"{source}: {field} says that the weights are quantized by {method}{f' ({text})' if text else ''}, which "
            f"is not read here. {_WAY_OUT} If the weights are in 16 bit after all, remove {field} from the file."
        )


def foreign_method(tensors: Mapping[str, str]) -> str | None:
    """The method of another tool that quantized `tensors` (name to safetensors' dtype), as far as names tell."""
    for pattern, method in _TENSOR_MARKS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return method
    if any(dtype.startswith("F8_") for dtype in tensors.values()):
        return "an FP8 method"
    if any(name.endswith(".weight") and dtype in ("I32", "U32", "U8", "I8") for name, dtype in tensors.items()):
        return "a tool that neither config.json nor a description file names"
    return None


def foreign_advice(tensors: Mapping[str, str]) -> str | None:
    """A message about tensors (name to dtype) that are not a plain Gemma's: what they are, and the way out."""
    if method := foreign_method(tensors):
        return f"The weights were quantized by {method}, which is not read here. {_WAY_OUT}"
    if any(
        re.search(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\.", name) for name in tensors
    ):
        return "They are those of an adapter (LoRA) that is not merged. Merge it first, with PEFT's merge_and_unload()."
    if any(re.fullmatch(r"(.*\.)?(score|classifier|v_head(\.summary)?)\.(weight|bias)", name) for name in tensors):
        return (
            "A head that classifies or scores belongs to another kind of model, which generates no text. Give the "
            "model that it was trained from."
        )
    return None


def check_other_files(directory: Path) -> None:
    """Raise UserError if a directory has neither safetensors nor pytorch_model*.bin but another framework's files."""
    if any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        return
    for pattern, what, way_out in _OTHER_FILES:
        if any(directory.glob(pattern)):
            raise UserError(f"{directory} holds no *.safetensors but {what}, which are not read here: {way_out}.")


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:200]}..." for name in listed[:limit]) + more
