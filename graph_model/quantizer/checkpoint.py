"""Quantize a floating-point checkpoint, a decoder layer at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graph_gemma.graph_model.checkpoint import open_checkpoint, save_checkpoint
from graph_gemma.graph_model.checkpoint.expected import EMBEDDING
from graph_gemma.graph_model.checkpoint.layout import check_link
from graph_gemma.graph_model.checkpoint.quantized import FLOAT
from graph_gemma.graph_model.checkpoint.reader import Checkpoint
from graph_gemma.graph_model.checkpoint.writer import MAX_SHARD_BYTES, check_target
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.json_file import read_json_object
from graph_gemma.graph_model.quantization.linears import HEAD, Quantization
from graph_gemma.graph_model.quantization.scheme import Dialect, Scheme
from graph_gemma.graph_model.quantization.schemes import scheme_of
from graph_gemma.graph_model.quantizer.float16_report import Float16Report
from graph_gemma.graph_model.quantizer.largest_values import LargestValues, Watch
from graph_gemma.graph_model.quantizer.layers import embed, kept_tokens, run_layer
from graph_gemma.graph_model.quantizer.ranges import RangeMethod, activation_scale, sqnr
from graph_gemma.graph_model.quantizer.report import LinearReport, QuantizationReport, report_linear
from graph_gemma.graph_model.quantizer.smooth_layer import SmoothedLayer, smooth_layer
from graph_gemma.graph_model.quantizer.source import read_finite, read_float_config
from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT
from graph_gemma.graph_model.weights import Part, evaluate, take_part

REPORT_NAME = "quantization.html"
# Files that are copied if they are there; others, but for weights and config, are not.
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
    """What is quantized and how, and in whose layout it is written."""

    quantization: Quantization
    smooth: bool = True  # of calibrated schemes: move outliers of activations into weights
    method: RangeMethod = "mse"  # of calibrated schemes: which range of an activation int8 covers
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
) -> QuantizationReport:
    """Write the quantized checkpoint of `source` to `target`, which appears whole or not at all.

    sequences: token ids that scales of activations are calibrated on; only calibrated schemes need any. progress is
    told of each finished layer.
    A layer in float32, what is made of it, and a shard of `max_shard_bytes` are in memory at a time.
    Raises UserError: a target that exists, a source that is quantized, weights that are not finite, no space.
    """
    check_target(target, overwrite=overwrite, setting="output_dir", inputs={"model.path": source})
    config = read_float_config(source)
    raw = read_json_object(check_link(source, "config.json"))
    scheme = options.quantization.scheme
    assert scheme is not None
    suffix = f"_{scheme}" if options.dialect == "atb" else ""
    extra: dict[str, Any] = {name: check_link(source, name) for name in _COPIED if (source / name).is_file()}
    with open_checkpoint(source, config) as checkpoint:
        quantizer = _Quantizer(config, checkpoint, options, sequences, progress)
        extra[f"quant_model_description{suffix}.json"] = lambda _: json.dumps(quantizer.description, indent=2).encode()
        extra[REPORT_NAME] = lambda _: quantizer.report().html(f"{source.name} in {scheme}").encode()
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
    return quantizer.report()


@dataclass
class _Quantizer:
    config: GemmaConfig
    checkpoint: Checkpoint
    options: QuantizerOptions
    sequences: Sequence[Sequence[int]]
    progress: Callable[[str], None]
    description: dict[str, str] = field(default_factory=dict)
    reports: list[LinearReport] = field(default_factory=list)
    largest: list[LargestValues] = field(default_factory=list)  # of each layer, where the scheme is calibrated

    def __post_init__(self) -> None:
        self.family = family_of(self.config)
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        scheme = scheme_of(self.options.quantization)
        assert scheme is not None
        self.scheme = scheme
        self.linears = set(self.options.quantization.linears)
        self.description["model_quant_type"] = scheme.modelslim

    def report(self) -> QuantizationReport:
        """What is to be shown, when all tensors are made."""
        float16 = Float16Report.of(self.family, self.largest, DEFAULT_EXPONENT) if self.largest else None
        return QuantizationReport(self.reports, float16)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the new checkpoint; one layer is in memory at a time."""
        for name, tensor in self._all():
            path = name.rpartition(".")[0]
            self.description[name] = self.scheme.modelslim if path in self.linears else FLOAT
            yield name, tensor

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        embedding = self._read(EMBEDDING)
        yield EMBEDDING, embedding
        hidden = embed(self.family, embedding, self.sequences) if self.scheme.calibrated else []
        for index, layer in enumerate(self.family.layers):
            prefix = f"{self.family.layer_path(index)}."
            names = [name for name in self.checkpoint.names if name.startswith(prefix)]
            weights = {name.removeprefix(prefix): self._read(name).float() for name in names}
            quantized = {path.removeprefix(prefix) for path in self.linears if path.startswith(prefix)}
            inputs = self._calibrate(index, weights, hidden, quantized) if self.scheme.calibrated else {}
            smoothed = SmoothedLayer(weights, inputs, {})
            if self.options.smooth and self.scheme.calibrated:
                smoothed = smooth_layer(layer, weights, inputs, quantized, self.dtype, self.options.method)
            yield from self._layer(prefix, weights, inputs, smoothed, quantized)
            for name in names:
                self.checkpoint.release(name)
            self.progress(f"layer {index + 1} of {len(self.family.layers)}")
        norm = self.family.final_norm
        yield norm.weight, self._read(norm.weight)
        head = f"{HEAD}.weight"
        if HEAD in self.linears:
            weight = (embedding if self.config.tie_word_embeddings else self._read(head)).float()
            inputs = {}
            if self.scheme.calibrated:
                final = kept_tokens(hidden)
                factor = float(norm.one_plus) + self._read(norm.weight).float()
                rms = torch.rsqrt(final.square().mean(-1, keepdim=True) + norm.eps)
                inputs[HEAD] = final * rms * factor
            weights = {head: weight}
            yield from self._layer("", weights, inputs, SmoothedLayer(weights, inputs, {}), {HEAD})
        elif self.config.tie_word_embeddings:
            self.description[head] = FLOAT  # readers, ModelSlim's own too, ask for every linear
        else:
            yield head, self._read(head)

    def _calibrate(
        self, index: int, weights: dict[str, Tensor], hidden: list[Tensor], quantized: set[str]
    ) -> dict[str, Tensor]:
        """Run a layer on the texts; the inputs of its quantized linears."""
        watch = Watch(self.family.layers[index])
        inputs = run_layer(self.family, index, weights, hidden, quantized, watch.attach)
        self.largest.append(watch.largest())
        return inputs

    def _layer(
        self,
        prefix: str,
        weights: dict[str, Tensor],
        inputs: dict[str, Tensor],
        smoothed: SmoothedLayer,
        quantized: set[str],
    ) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors of a layer. inputs: of its linears, where the scheme is calibrated."""
        method, scheme = self.options.method, self.scheme
        scales = {name: activation_scale(x, method, self.dtype) for name, x in smoothed.inputs.items()}
        for name, tensor in smoothed.weights.items():
            path, _, kind = name.rpartition(".")
            if path not in quantized:
                yield prefix + name, tensor.to(self.dtype)
            elif kind == "weight":
                owner = self.family.group_of(prefix + path).paths[0].removeprefix(prefix)
                bias = smoothed.weights.get(f"{path}.bias")
                stored = scheme.store(tensor, bias, scales.get(owner), self.dtype, self.options.dialect)
                if scheme.calibrated:
                    before, after = (inputs[owner], weights[name]), (smoothed.inputs[owner], tensor)
                    strength = smoothed.strengths.get(owner)
                    report = report_linear(prefix + path, before, after, scales[owner], strength, self.dtype, method)
                else:
                    report = LinearReport(prefix + path, sqnr(tensor, _dequantized(scheme, stored)))
                self.reports.append(report)
                yield from ((f"{prefix}{path}.{kind}", part) for kind, part in stored.items())

    def _read(self, name: str) -> Tensor:
        return read_finite(self.checkpoint, name, self.config)


def _dequantized(scheme: Scheme, stored: Mapping[str, Tensor]) -> Tensor:
    """The weight that a linear's stored tensors stand for, float32."""
    weight = scheme.plain("", "weight", tuple(stored["weight"].shape), torch.float32)

    def read(name: str, part: Part | None = None) -> Tensor:
        return take_part(stored[name.removeprefix(".")], part)

    return evaluate([weight], read, torch.device("cpu"))[weight]
