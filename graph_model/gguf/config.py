"""The config of a Gemma in a GGUF file, from the keys that llama.cpp's converter writes.

What a file leaves out is as llama.cpp computes it: the attention scale, the pattern of layers, Gemma 3's local rotary
base, Gemma 2's soft-caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graph_gemma.graph_model.config import Gemma2Config, Gemma3Config, GemmaConfig, LayerType
from graph_gemma.graph_model.config_file import from_json
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.gguf.header import Header

# What llama.cpp calls a family -> what config.json calls it.
MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
_EMBEDDING = "token_embd.weight"
_END_OF_TURN = "<end_of_turn>"
# Keys that change what the model computes begin so; one that is not known is refused.
_COMPUTED = ("attention.", "rope.", "attn_", "final_")


def read_config(header: Header, dtype: str) -> GemmaConfig:
    """The model's config, with the weights in `dtype`. Raises UserError naming the file and the key."""
    _check_kind(header)
    return from_json({**_Keys(header).config(), "torch_dtype": dtype}, str(header.path))


def assumed(config: GemmaConfig) -> str:
    """A line on what no GGUF file states, for the user to compare with the model's card."""
    if not isinstance(config, Gemma2Config | Gemma3Config):
        return ""
    full = [index for index, kind in enumerate(config.layer_types) if kind == "full_attention"]
    local = f", rotary base {config.rope_local_base_freq:g} in the others" if isinstance(config, Gemma3Config) else ""
    return f"query_pre_attn_scalar {config.query_pre_attn_scalar}, full attention in the layers {full}{local}"


def _check_kind(header: Header) -> None:
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in MODEL_TYPES:
        raise UserError(
            f"{header.path}: general.architecture is {shown(architecture)}; read are Gemma 1, 2 and 3, called "
            f"{', '.join(map(repr, MODEL_TYPES))}. Give the GGUF file of one of them."
        )
    kind, parts = header.fields.get("general.type", "model"), header.fields.get("split.count", 1)
    if kind != "model":
        raise UserError(
            f"{header.path}: general.type is {shown(kind)}; it must be a whole model. Give the file of the model that "
            "this one belongs to."
        )
    if parts not in (0, 1):
        raise UserError(
            f"{header.path} is a part of a model that was split into {shown(parts)} files. Merge them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )


def attention_scalar(fields: Mapping[str, Any]) -> int:
    """query_pre_attn_scalar, which no file states, of a Gemma 2 or 3 with these fields of config.json.

    llama.cpp knows a 27B by its number of layers, whatever its shape: hidden_size / heads. Of all others it is
    head_dim.
    """
    if fields["num_hidden_layers"] == _LAYERS_OF_27B[fields["model_type"]]:
        return int(fields["hidden_size"] // fields["num_attention_heads"])
    return int(fields["head_dim"])


class _Keys:
    """The keys of one architecture, each as the field that config.json has for it."""

    def __init__(self, header: Header) -> None:
        self.path, self.fields = header.path, header.fields
        self.architecture: str = header.fields["general.architecture"]
        embedding = header.tensors.get(_EMBEDDING)
        if embedding is None:
            raise UserError(f"{header.path} holds no {_EMBEDDING}, so no language model. Copy it again.")
        self.rows = embedding.shape[0]
        self.tied = "output.weight" not in header.tensors
        self.read: set[str] = set()

    def config(self) -> dict[str, Any]:
        hidden, heads = self.size("embedding_length"), self.size("attention.head_count")
        layers = self.size("block_count")
        raw: dict[str, Any] = {
            "model_type": MODEL_TYPES[self.architecture],
            "vocab_size": self.rows,
            "hidden_size": hidden,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv", heads),
            "head_dim": self.size("attention.key_length", hidden // heads),
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self.decimal("attention.layer_norm_rms_epsilon", 1e-6),
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id", 2),
            "eos_token_id": self.ends(),
            **self.rotary(),
        }
        if self.architecture != "gemma":
            raw |= self.sliding(layers)
            raw["query_pre_attn_scalar"] = attention_scalar(raw)
        for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
            self.same(key, raw["head_dim"])
        for key in ("rope.dimension_count", "rope.dimension_count_swa"):
            self.same(key, raw["head_dim"])
        self.same("attention.causal", True)
        self.no_other()
        return raw

    def rotary(self) -> dict[str, Any]:
        factor = self.decimal("rope.scaling.factor", 1.0)
        kind = self.value("rope.scaling.type", "none" if factor == 1.0 else "linear")
        self.read |= {"rope.scaling.original_context_length", "rope.scaling.finetuned"}  # which say how it was trained
        scaling = None if kind == "none" else {"rope_type": kind, "factor": factor}
        found: dict[str, Any] = {"rope_scaling": scaling}
        if self.architecture == "gemma3":
            found["rope_theta"] = self.decimal("rope.freq_base", 1e6)
            found["rope_local_base_freq"] = self.decimal("rope.freq_base_swa", 1e4)
        else:
            found["rope_theta"] = self.decimal("rope.freq_base", 1e4)
            self.same("rope.freq_base_swa", found["rope_theta"])
        return found

    def sliding(self, layers: int) -> dict[str, Any]:
        """Gemma 2 has a window where the file states none; a Gemma 3 without one has full layers only."""
        defaults = (4096, 2) if self.architecture == "gemma2" else (0, 6)
        window = self.size("attention.sliding_window", defaults[0], least=0)
        pattern = self.value("attention.sliding_window_pattern", defaults[1])
        caps = (50.0, 30.0) if self.architecture == "gemma2" else (None, None)
        return {
            "sliding_window": window or 1,
            "layer_types": self.layer_types(pattern if window else 1, layers),
            "attn_logit_softcapping": self.decimal("attn_logit_softcapping", caps[0]),
            "final_logit_softcapping": self.decimal("final_logit_softcapping", caps[1]),
        }

    def layer_types(self, pattern: Any, layers: int) -> list[LayerType]:
        """pattern: every so many layers one is full; or a list that says of each layer whether it is sliding."""
        if isinstance(pattern, list):
            return ["sliding_attention" if slides else "full_attention" for slides in pattern]
        if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 0:
            raise self.wrong("attention.sliding_window_pattern", pattern, "a number of layers or a list of booleans")
        if layers > 1024:  # as from_json says of num_hidden_layers
            return []
        slides = (not pattern or (index + 1) % pattern for index in range(layers))
        return ["sliding_attention" if one else "full_attention" for one in slides]

    def ends(self) -> list[int]:
        """Ids that end an answer. A file with a chat template has <end_of_turn>, whether a field says so or not."""
        names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        found = [self.fields[name] for name in names if name in self.fields] or [1]
        tokens = self.fields.get("tokenizer.ggml.tokens")
        if "tokenizer.chat_template" in self.fields and isinstance(tokens, list) and _END_OF_TURN in tokens:
            found.append(tokens.index(_END_OF_TURN))
        return list(dict.fromkeys(found))

    def value(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.fields.get(f"{self.architecture}.{key}", default)

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, value, f"an integer of at least {least}")
        return value

    def decimal(self, key: str, default: float | None) -> float | None:
        """A float32 as the decimal that it was made from: the shortest that it is nearest to."""
        value = self.value(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.wrong(key, value, "a number")
        return None if value is None else float(str(np.float32(value)))

    def same(self, key: str, expected: Any) -> None:
        if (value := self.value(key, expected)) != expected:
            raise self.wrong(key, value, f"{shown(expected)} in a Gemma of this kind")

    def no_other(self) -> None:
        for name, value in self.fields.items():
            key = name.removeprefix(f"{self.architecture}.")
            if key != name and key not in self.read and key.startswith(_COMPUTED):
                raise UserError(
                    f"{self.path}: {shown(name)} is {shown(value)}, and it is not known here what a Gemma computes "
                    "with it. Give the GGUF file of a model without it, or the model's safetensors."
                )

    def wrong(self, key: str, value: Any, must: str) -> UserError:
        found = "missing" if value is None else shown(value)
        return UserError(
            f"{self.path}: {self.architecture}.{key} is {found}; it must be {must}. Copy the file again from the "
            "original, or convert the model again."
        )
