"""Gemma as an OpenVINO model with its cache as state, as OpenVINO's own exporter builds it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.weights import Read

_FLOATED = "_as_float"  # end of the names of nodes that turn a stored weight into float32


def build_model(config: GemmaConfig, read: Read, dtype: str, int8: bool) -> Any:
    """An openvino.Model: input_ids and position_ids [batch, tokens] int64, beam_idx [batch] int32 -> logits [batch,
    vocab] after each row's last token.

    Matrices are stored in `dtype`, or as int8 with a scale per row; computation is written in float32, and the plugin
    chooses the precision. Keys and values are variables that grow with every call until the state is reset.
    """
    return _Builder(config, read, dtype, int8).build()


def save_model(model: Any, path: Path) -> None:
    """Write path (XML) and its weights next to it. The plugin keeps 16-bit weights as they are only where the XML says
    that what turns them into float32 is a decompression, which Python cannot say in the model."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    mark = '<rt_info><attribute name="decompression" version="0" /></rt_info>'
    layer = re.compile(rf'<layer [^>]*name="[^"]*{_FLOATED}" type="Convert"[^>]*>\s*<data [^>]*/>')
    path.write_text(layer.sub(lambda found: found[0] + mark, path.read_text(encoding="utf-8")), encoding="utf-8")


class _Builder:
    def __init__(self, config: GemmaConfig, read: Read, dtype: str, int8: bool) -> None:
        import openvino
        from openvino import opset13

        self.ov, self.op = openvino, opset13
        self.config, self.read, self.dtype, self.int8 = config, read, dtype, int8
        self.sinks: list[Any] = []
        self.matrices: dict[str, Any] = {}

    def build(self) -> Any:
        ov, op, c = self.ov, self.op, self.config
        ids = self._input("input_ids", [-1, -1], ov.Type.i64)
        positions = self._input("position_ids", [-1, -1], ov.Type.i64)
        self.beams = self._input("beam_idx", [-1], ov.Type.i32)
        scale = torch.tensor(c.embedding_scale, dtype=getattr(torch, self.dtype)).item()
        x = op.multiply(op.gather(self._matrix("model.embed_tokens.weight"), ids, self._ints(0)), self._float(scale))
        self.batch = op.gather(op.shape_of(ids), self._ints(0), self._ints(0))
        self.positions = positions
        self._rotary(positions)
        for index in range(c.num_hidden_layers):
            prefix = f"model.layers.{index}"
            attention = self._attention(self._norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn")
            x = op.add(x, attention)
            x = op.add(x, self._mlp(self._norm(x, f"{prefix}.post_attention_layernorm"), f"{prefix}.mlp"))
        last = op.gather(self._norm(x, "model.norm"), self._ints(-1), self._ints(1))  # [batch, hidden]
        head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
        logits = op.result(op.matmul(last, self._matrix(head), False, True))
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([logits], self.sinks, [ids, positions, self.beams])

    def _attention(self, x: Any, path: str) -> Any:
        op, c = self.op, self.config
        query = self._rotate(self._heads(x, f"{path}.q_proj", c.num_attention_heads))
        key = self._cached(self._rotate(self._heads(x, f"{path}.k_proj", c.num_key_value_heads)), f"{path}.key")
        value = self._cached(self._heads(x, f"{path}.v_proj", c.num_key_value_heads), f"{path}.value")
        if not hasattr(self, "mask") or path.endswith(".0.self_attn"):
            self.mask = self._mask(key)
        attended = op.scaled_dot_product_attention(
            query, self._repeated(key), self._repeated(value), self.mask, self._float(c.softmax_scale)
        )
        merged = op.reshape(op.transpose(attended, self._ints([0, 2, 1, 3])), self._ints([0, 0, -1]), True)
        return self._linear(merged, f"{path}.o_proj")

    def _mlp(self, x: Any, path: str) -> Any:
        op = self.op
        gate = op.gelu(self._linear(x, f"{path}.gate_proj"), "tanh")
        return self._linear(op.multiply(gate, self._linear(x, f"{path}.up_proj")), f"{path}.down_proj")

    def _norm(self, x: Any, path: str) -> Any:
        op = self.op
        weight = op.constant(1.0 + self.read(f"{path}.weight").float().numpy())
        square = op.reduce_mean(op.power(x, self._float(2.0)), self._ints(-1), True)
        root = op.sqrt(op.add(square, self._float(self.config.rms_norm_eps)))
        return op.multiply(op.multiply(x, op.divide(self._float(1.0), root)), weight)

    def _heads(self, x: Any, path: str, heads: int) -> Any:
        """[batch, tokens, hidden] -> [batch, heads, tokens, head_dim]."""
        op = self.op
        shape = self._ints([0, 0, heads, self.config.head_dim])
        return op.transpose(op.reshape(self._linear(x, path), shape, True), self._ints([0, 2, 1, 3]))

    def _rotary(self, positions: Any) -> None:
        op, c = self.op, self.config
        frequencies = c.rope_theta ** -(np.arange(0, c.head_dim, 2, dtype=np.float32) / c.head_dim)
        places = op.convert(op.unsqueeze(positions, self._ints([1, 3])), self.ov.Type.f32)  # [batch, 1, tokens, 1]
        angles = op.multiply(places, op.constant(frequencies.reshape(1, 1, 1, -1).astype(np.float32)))
        angles = op.concat([angles, angles], -1)
        self.cos, self.sin = op.cos(angles), op.sin(angles)

    def _rotate(self, x: Any) -> Any:
        op = self.op
        half = self.config.head_dim // 2
        parts = op.variadic_split(x, self._ints(-1), self._ints([half, half]))
        turned = op.concat([op.negative(parts.output(1)), parts.output(0)], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def _cached(self, new: Any, name: str) -> Any:
        """The value of the variable `name` with `new` appended, which becomes its value."""
        op, c = self.op, self.config
        from openvino.op.util import Variable, VariableInfo

        info = VariableInfo()
        info.data_shape = self.ov.PartialShape([-1, c.num_key_value_heads, -1, c.head_dim])
        info.data_type = self.ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        tail = self._ints([c.num_key_value_heads, 0, c.head_dim])
        shape = op.concat([op.unsqueeze(self.batch, self._ints(0)), tail], 0)
        past = op.read_value(op.broadcast(self._float(0.0), shape), variable)
        all_ = op.concat([op.gather(past, self.beams, self._ints(0)), new], -2)
        self.sinks.append(op.assign(all_, variable))
        return all_

    def _repeated(self, x: Any) -> Any:
        """A key or value head for each query head."""
        op, c = self.op, self.config
        groups = c.num_attention_heads // c.num_key_value_heads
        if groups == 1:
            return x
        wide = op.unsqueeze(x, self._ints(2))  # [batch, kv_heads, 1, tokens, head_dim]
        wide = op.broadcast(wide, self._ints([1, 1, groups, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, self._ints([0, c.num_attention_heads, -1, c.head_dim]), True)

    def _mask(self, key: Any) -> Any:
        """[batch, 1, tokens, context]: 0 where a token may look, the lowest float elsewhere."""
        op = self.op
        context = op.gather(op.shape_of(key), self._ints(2), self._ints(0))
        places = op.range(self._ints(0), context, self._ints(1), "i64")
        visible = op.less_equal(places, op.unsqueeze(self.positions, self._ints([1, 3])))
        return op.select(visible, self._float(0.0), self._float(float(np.finfo(np.float32).min)))

    def _linear(self, x: Any, path: str) -> Any:
        y = self.op.matmul(x, self._matrix(f"{path}.weight"), False, True)
        if self.config.attention_bias and ".self_attn." in path:
            y = self.op.add(y, self.op.constant(self.read(f"{path}.bias").float().numpy()))
        return y

    def _matrix(self, name: str) -> Any:
        if name not in self.matrices:
            self.matrices[name] = self._stored(self.read(name), name)
        return self.matrices[name]

    def _stored(self, weight: Tensor, name: str) -> Any:
        ov, op = self.ov, self.op
        if self.int8:
            scale = weight.float().abs().amax(1, keepdim=True).clamp_(min=1e-12) / 127
            number = op.constant((weight.float() / scale).round_().to(torch.int8).numpy())
            return op.multiply(op.convert(number, ov.Type.f32), op.constant(scale.numpy()))
        if weight.dtype == torch.float32:
            return op.constant(weight.numpy())
        kind = {torch.float16: ov.Type.f16, torch.bfloat16: ov.Type.bf16}[weight.dtype]
        stored = op.constant(ov.Tensor(weight.contiguous().view(torch.int16).numpy(), weight.shape, kind))
        node = op.convert(stored, ov.Type.f32)
        node.set_friendly_name(name + _FLOATED)
        return node

    def _input(self, name: str, shape: list[int], kind: Any) -> Any:
        node = self.op.parameter(shape, kind, name=name)
        node.output(0).get_tensor().set_names({name})
        return node

    def _ints(self, value: int | list[int]) -> Any:
        return self.op.constant(np.array(value, np.int64))

    def _float(self, value: float) -> Any:
        return self.op.constant(np.float32(value))
