"""A small graph as torchair dumps it, written out by hand."""

from __future__ import annotations

_NUMBER = r"\\00{}" + r"\\000" * 7  # an int64 below 8, as text within text
_SHAPE = 't { desc { dtype: DT_INT64 shape { dim: 2 } } data: "' + _NUMBER.format(3) + _NUMBER.format(4) + '" }'


def pbtxt() -> str:
    """A cache that is written by reference, and a product of scaled inputs, which it reads through a view."""
    return "".join(
        [
            _node("arg0_1", "Data", [], {"index": "i: 0"}, outputs=[_desc("y", "DT_FLOAT16", 8, 4)],
                  notes={"_model_node": "p_proj_weight", "_model_value": "weight model.layers.0.proj.weight"}),
            _node("arg1_1", "Data", [], {"index": "i: 1"}, outputs=[_desc("y", "DT_FLOAT16", 6, 4)],
                  notes={"_model_node": "key_cache_0", "_model_value": "cache"}),
            _node("arg2_1", "Data", [], {"index": "i: 2"}, outputs=[_desc("y", "DT_INT64", 3, 1)],
                  notes={"_model_node": "slot_mapping", "_model_value": "input"}),
            _node("arg3_1", "Data", [], {"index": "i: 3"}, outputs=[_desc("y", "DT_FLOAT16", 3, 4)]),
            _node("Const", "Const", [], {"value": _SHAPE},
                  outputs=[_desc("y")]),
            _node("Scatter", "ScatterNdUpdate", ["arg1_1:0", "arg2_1:0", "arg3_1:0"], {},
                  inputs=[_desc("var"), _desc("indices"), _desc("updates")], outputs=[_desc("var", "DT_FLOAT16", 6, 4)],
                  notes={"_model_node": "scatter", "_model_layer": "model.layers.0.self_attn"}),
            _node("Muls", "Muls", ["arg3_1:0"], {"value": "f: 0.5"}, inputs=[_desc("x")], outputs=[_desc("y")],
                  notes={"_model_node": "mul", "_model_layer": "model.layers.0", "_model_attributes": "softmax_scale"}),
            _node("Reshape", "Reshape", ["Muls:0", "Const:0"], {}, inputs=[_desc("x"), _desc("shape")],
                  outputs=[_desc("y", "DT_FLOAT16", 3, 4)]),
            _node("MatMulV2", "MatMulV2", ["Reshape:0", "arg0_1:0", "", ""], {"transpose_x2": "b: true"},
                  inputs=[_desc("x1"), _desc("x2"), _desc("bias"), _desc("offset_w")],
                  outputs=[_desc("y", "DT_FLOAT16", 3, 8, fx="linear-ascend.linear.default.OUTPUT.0")],
                  notes={"_model_node": "linear_7", "_model_layer": "model.layers.0.proj"}),
            _node("NetOutput", "NetOutput", ["MatMulV2:0", "^Scatter"], {}, inputs=[_desc("input0")],
                  notes={"_model_soc": "atlas_300i_duo", "_model_lowered": "CANN stand-in"}),
        ]
    )  # fmt: skip


def _desc(name: str, dtype: str = "", *shape: int, fx: str = "") -> tuple[str, str]:
    text = f'name: "{name}" layout: "ND" '
    if dtype:
        dims = " ".join(f"dim: {size}" for size in shape)
        text += f'dtype: {dtype} shape {{ {dims} }} device_type: "NPU" '
    if fx:
        text += f'attr {{ key: "_fx_tensor_name" value {{ s: "{fx}" }} }} '
    return name, text


def _node(
    name: str,
    op: str,
    sources: list[str],
    attrs: dict[str, str],
    *,
    inputs: list[tuple[str, str]] | None = None,
    outputs: list[tuple[str, str]] | None = None,
    notes: dict[str, str] | None = None,
) -> str:
    entries = {
        **attrs,
        **{key: f's: "{note}"' for key, note in (notes or {}).items()},
        **{f"[i]{key}": text for key, text in inputs or []},
        **{f"[o]{key}": text for key, text in outputs or []},
    }
    lines = [f'    name: "{name}"', f'    op: "{op}"', *(f'    input: "{source}"' for source in sources)]
    lines += [f"    attr {{\n        key: \"{key}\"\n        value {{\n            s: '{text}\\n'\n        }}\n    }}"
              for key, text in entries.items()]  # fmt: skip
    return "node {\n" + "\n".join(lines) + "\n}\n"
