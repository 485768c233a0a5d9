"""From a floating-point checkpoint to a quantized one, a decoder layer at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from graph_model.checkpoint import open_checkpoint, save_checkpoint
from graph_model.checkpoint.expected import EMBEDDING
from graph_model.checkpoint.layout import check_link
from graph_model.checkpoint.quantized import DESCRIPTION_NAMES, FLOAT
from graph_model.checkpoint.reader import Checkpoint
from graph_model.checkpoint.writer import MAX_SHARD_BYTES, check_target
from graph_model.config import GemmaConfig, read_config
from graph_model.errors import UserError
from graph_model.json_file import read_json_object
from graph_model.quantization.linears import HEAD, Quantization, group_of
from graph_model.quantizer.layers import embed, kept_tokens, run_layer
from graph_model.quantizer.ranges import ActivationScale, RangeMethod, activation_scale, outlier_ratio, sqnr
from graph_model.quantizer.report import LinearReport, html_page
from graph_model.quantizer.smooth_layer import SmoothedLayer, smooth_layer
from graph_model.quantizer.smoothing import quality
from graph_model.weights.quantized import quantize_weight

Dialect = Literal["atb", "vllm_ascend"]
REPORT_NAME = "quantization.html"
# What a checkpoint has besides weights, config and tokenizer is left behind; of these each is copied if it is there.
_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class QuantizerOptions:
    """scheme and linears: see Quantization. smooth, method: of w8a8's activations. dialect: whose layout is written."""

    quantization: Quantization
    smooth: bool = True
    method: RangeMethod = "mse"
    dialect: Dialect = "atb"


def quantize_checkpoint(
    source: Path,
    target: Path,
    options: QuantizerOptions,
    sequences: Sequence[Sequence[int]],
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[LinearReport]:
    """Write the quantized checkpoint of `source` to `target`, which appears whole or not at all.

    sequences: token ids that w8a8 is calibrated on; other schemes need none. progress is told of each finished layer.
    A layer in float32, what is made of it, and a shard of `max_shard_bytes` are in memory at a time.
    Raises UserError: a target that exists, a source that is quantized, weights that are not finite, no space.
    """
    check_target(target, overwrite=overwrite, setting="output_dir", inputs={"model.path": source})
    config = read_config(source)
    if config.quantize is not None:
        raise UserError(
            f"{source}/config.json: quantize is {config.quantize!r}; it is quantized already. Give the floating-point "
            "original."
        )
    raw = read_json_object(check_link(source, "config.json"))
    scheme = options.quantization.scheme
    assert scheme is not None
    suffix = f"_{scheme}" if options.dialect == "atb" else ""
    extra: dict[str, Any] = {name: check_link(source, name) for name in _COPIED if (source / name).is_file()}
    with open_checkpoint(source, config) as checkpoint:
        quantizer = _Quantizer(config, checkpoint, options, sequences, progress)
        extra[f"quant_model_description{suffix}.json"] = lambda _: json.dumps(quantizer.description, indent=2).encode()
        extra[REPORT_NAME] = lambda _: html_page(f"{source.name} in {scheme}", quantizer.reports).encode()
        stem = f"quant_model_weight_{scheme}" if options.dialect == "atb" else "quant_model_weights"
        config_json = {**raw, "quantize": scheme}
        save_checkpoint(
            target,
            quantizer.tensors(),
            config_json,
            extra,
            overwrite=overwrite,
            stem=stem,
            max_shard_bytes=max_shard_bytes,
        )
    return quantizer.reports


@dataclass
class _Quantizer:
    config: GemmaConfig
    checkpoint: Checkpoint
    options: QuantizerOptions
    sequences: Sequence[Sequence[int]]
    progress: Callable[[str], None]
    description: dict[str, str] = field(default_factory=dict)
    reports: list[LinearReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        self.scheme = self.options.quantization.scheme
        self.linears = set(self.options.quantization.linears)
        self.description["model_quant_type"] = DESCRIPTION_NAMES[self.scheme or "w8a8"]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the new checkpoint; one layer is in memory at a time."""
        for name, tensor in self._all():
            path = name.rpartition(".")[0]
            self.description[name] = DESCRIPTION_NAMES[self.scheme or "w8a8"] if path in self.linears else FLOAT
            yield name, tensor

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        embedding = self._read(EMBEDDING)
        yield EMBEDDING, embedding
        static = self.scheme == "w8a8"
        hidden = embed(self.config, embedding, self.sequences) if static else []
        for index in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            names = [name for name in self.checkpoint.names if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): self._read(name).float() for name in names}
            quantized = {path.removeprefix(prefix) for path in self.linears if path.startswith(prefix)}
            if static:
                inputs = run_layer(self.config, weights, hidden, quantized)
                yield from self._static_layer(prefix, weights, inputs, quantized)
            else:
                yield from self._layer(prefix, weights, quantized)
            for name in names:
                self.checkpoint.release(name)
            self.progress(f"layer {index + 1} of {self.config.num_hidden_layers}")
        norm = "model.norm.weight"
        yield norm, self._read(norm)
        head = f"{HEAD}.weight"
        if HEAD in self.linears:
            weight = embedding if self.config.tie_word_embeddings else self._read(head)
            if static:
                final = kept_tokens(hidden)
                factor = 1.0 + self._read(norm).float()
                x = final * torch.rsqrt(final.square().mean(-1, keepdim=True) + self.config.rms_norm_eps) * factor
                scale = activation_scale(x, self.options.method, self.dtype)
                self.reports.append(self._static_report(HEAD, x, x, weight.float(), weight.float(), scale, None))
                yield from self._static_linear(HEAD, weight.float(), None, scale)
            else:
                yield from self._rows_linear(HEAD, weight.float(), None)
        elif not self.config.tie_word_embeddings:
            yield head, self._read(head)

    def _static_layer(
        self, prefix: str, weights: dict[str, Tensor], inputs: dict[str, Tensor], quantized: set[str]
    ) -> Iterator[tuple[str, Tensor]]:
        method = self.options.method
        smoothed = SmoothedLayer(weights, inputs, {})
        if self.options.smooth:
            smoothed = smooth_layer(self.config, weights, inputs, quantized, self.dtype, method)
        scales: dict[str, ActivationScale] = {}
        for linear, x in smoothed.inputs.items():
            scales[linear] = activation_scale(x, method, self.dtype)
            strength = smoothed.strengths.get(linear)
            for name in group_of(linear):
                before, after = (side[f"{name}.weight"] for side in (weights, smoothed.weights))
                self.reports.append(
                    self._static_report(prefix + name, inputs[linear], x, before, after, scales[linear], strength)
                )
        for name, tensor in smoothed.weights.items():
            path, _, kind = name.rpartition(".")
            if path not in quantized:
                yield prefix + name, tensor.to(self.dtype)
            elif kind == "weight":
                bias = smoothed.weights.get(f"{path}.bias")
                yield from self._static_linear(prefix + path, tensor, bias, scales[group_of(path)[0]])

    def _layer(self, prefix: str, weights: dict[str, Tensor], quantized: set[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights.items():
            path, _, kind = name.rpartition(".")
            if path not in quantized:
                yield prefix + name, tensor.to(self.dtype)
            elif kind == "weight":
                yield from self._rows_linear(prefix + path, tensor, weights.get(f"{path}.bias"))

    def _static_linear(
        self, path: str, weight: Tensor, bias: Tensor | None, scale: ActivationScale
    ) -> Iterator[tuple[str, Tensor]]:
        q, weight_scale = quantize_weight(weight)
        deq_scale = weight_scale * scale.scale
        correction = -scale.offset * q.sum(1, dtype=torch.int64).double()
        wide = correction if bias is None else correction + bias.double() / deq_scale.double()
        vllm = self.options.dialect == "vllm_ascend"
        bits = deq_scale.view(torch.int32).long() if self.dtype == torch.float16 else deq_scale
        yield f"{path}.weight", q
        yield f"{path}.input_scale", torch.tensor([scale.scale]).to(self.dtype)
        yield f"{path}.input_offset", torch.tensor([scale.offset]).to(self.dtype)
        yield f"{path}.quant_bias", wide.round().clamp(-(2**31), 2**31 - 1).to(torch.int32)
        yield f"{path}.deq_scale", bits
        if vllm:
            yield f"{path}.weight_scale", weight_scale[:, None].to(self.dtype)
            yield f"{path}.weight_offset", torch.zeros(len(weight_scale), 1, dtype=self.dtype)

    def _rows_linear(self, path: str, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        q, scale = quantize_weight(weight)
        self.reports.append(LinearReport(path, sqnr(weight, q.float() * scale[:, None])))
        yield f"{path}.weight", q
        yield f"{path}.weight_scale", scale[:, None]
        yield f"{path}.weight_offset", torch.zeros(len(scale), 1)
        if bias is not None:
            yield f"{path}.bias", bias.to(self.dtype)

    def _static_report(
        self,
        path: str,
        x: Tensor,
        smoothed_x: Tensor,
        weight: Tensor,
        smoothed_weight: Tensor,
        scale: ActivationScale,
        strength: float | None,
    ) -> LinearReport:
        tokens = slice(None, None, -(-x.shape[0] // 512))
        method = self.options.method
        # The same numbers, but for rows that were divided because the next linear's input is smoothed.
        exact, smoothed = x[tokens] @ weight.t(), smoothed_x[tokens] @ smoothed_weight.t()
        return LinearReport(
            name=path,
            sqnr_after=quality(smoothed_x[tokens], smoothed_weight, smoothed, self.dtype, method),
            low=(-128 - scale.offset) * scale.scale,
            high=(127 - scale.offset) * scale.scale,
            outliers_before=outlier_ratio(x),
            outliers_after=outlier_ratio(smoothed_x),
            sqnr_before=quality(x[tokens], weight, exact, self.dtype, method),
            strength=strength,
        )

    def _read(self, name: str) -> Tensor:
        """The tensor in the model's dtype. Raises UserError if a value is not finite, or becomes so."""
        tensor = self.checkpoint.read(name).to(self.dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{name} holds NaN or infinite values in {self.config.dtype}. Such a checkpoint is damaged and "
                "cannot be quantized; copy it again from the original."
            )
        return tensor
