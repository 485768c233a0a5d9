"""The protobuf messages of a GE graph (ge_ir.proto), so that files of graphs can be read without torch_npu.

Names and numbers are those of the public ge_ir.proto; groups of attributes that only GE itself fills are left out.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from graph_gemma.graph_model.errors import UserError

# Message: field=number type. A leading * marks a repeated field, a leading | a member of the oneof "value"; map is a
# map from text to AttrDef; other types are messages of this table.
_MESSAGES = """
AttrDef: |list=1 ListValue, |s=2 bytes, |i=3 int64, |f=4 float, |b=5 bool, |bt=7 bytes, |func=10 NamedAttrs,
  |td=11 TensorDescriptor, |t=12 TensorDef, |g=13 GraphDef, |list_list_int=14 ListListInt, |dt=15 int64,
  |list_list_float=16 ListListFloat, |expression=17 bytes
ListValue: *s=2 bytes, *i=3 int64, *f=4 float, *b=5 bool, *bt=7 bytes, *td=8 TensorDescriptor, *t=9 TensorDef,
  *g=10 GraphDef, *na=11 NamedAttrs, *dt=12 int64, val_type=20 ListValueType
ListListInt: *list_list_i=1 ListInt
ListInt: *list_i=1 int64
ListListFloat: *list_list_f=1 ListFloat
ListFloat: *list_f=1 float
NamedAttrs: name=1 string, attr=2 map
ShapeDef: *dim=1 int64
TensorDescriptor: name=1 string, dtype=2 DataType, shape=3 ShapeDef, layout=4 string, attr=5 map, has_out_attr=9 bool,
  size=10 int64, weight_size=11 int64, reuse_input=12 bool, output_tensor=13 bool, device_type=14 string,
  input_tensor=15 bool, real_dim_cnt=16 int64, reuse_input_index=17 int64, data_offset=18 int64, cmps_size=19 int64,
  cmps_tab=20 string, cmps_tab_offset=21 int64
TensorDef: desc=1 TensorDescriptor, data=2 bytes
OpDef: name=1 string, type=2 string, *input=5 string, attr=10 map, has_out_attr=20 bool, id=21 int64,
  stream_id=22 int64, *input_name=23 string, *src_name=24 string, *src_index=25 int64, *dst_name=26 string,
  *dst_index=27 int64, *input_i=28 int64, *output_i=29 int64, *workspace=30 int64, *workspace_bytes=31 int64,
  *is_input_const=32 bool, *input_desc=33 TensorDescriptor, *output_desc=34 TensorDescriptor, *subgraph_name=35 string
GraphDef: name=1 string, *input=4 string, *output=5 string, *op=6 OpDef, attr=11 map
ModelDef: name=1 string, version=2 uint32, custom_version=3 string, *graph=7 GraphDef, attr=11 map
PbtxtGraph: *node=1 PbtxtNode
PbtxtNode: name=1 string, op=2 string, *input=3 string, *attr=4 PbtxtAttr
PbtxtAttr: key=1 string, value=2 PbtxtValue
PbtxtValue: s=1 bytes
"""
_DATA_TYPES = (
    "UNDEFINED FLOAT FLOAT16 INT8 UINT8 INT16 UINT16 INT32 INT64 UINT32 UINT64 BOOL DOUBLE STRING DUAL_SUB_INT8 "
    "DUAL_SUB_UINT8 COMPLEX64 COMPLEX128 QINT8 QINT16 QINT32 QUINT8 QUINT16 RESOURCE STRING_REF DUAL VARIANT BF16 INT4 "
    "UINT1 INT2 UINT2 COMPLEX32 HIFLOAT8 FLOAT8_E5M2 FLOAT8_E4M3FN FLOAT8_E8M0 FLOAT6_E3M2 FLOAT6_E2M3 FLOAT4_E2M1 "
    "FLOAT4_E1M2 HIFLOAT4"
)
_LIST_TYPES = "NONE STRING INT FLOAT BOOL BYTES TENSOR_DESC TENSOR GRAPH NAMED_ATTRS DATA_TYPE"
_ENUMS = {
    "DataType": [f"DT_{name}" for name in _DATA_TYPES.split()],
    "ListValueType": [f"VT_LIST_{name}" for name in _LIST_TYPES.split()],
}
_PACKAGE = "ge.proto"


@functools.cache
def messages() -> Any:
    """The message classes by name. Raises UserError where protobuf is not installed.

    The Pbtxt ones are the text that torchair dumps: a graph of the form that graph viewers read, whose attributes hold
    the text of AttrDef and TensorDescriptor.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise UserError(
            "protobuf is not installed; graphs are read with it. Run: pip install 'graph-gemma[inspect]'"
        ) from None

    file = descriptor_pb2.FileDescriptorProto(name="graph_gemma/ge_ir.proto", package=_PACKAGE, syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for entry in _MESSAGES.replace("\n  ", " ").strip().splitlines():
        name, _, fields = entry.partition(": ")
        message = file.message_type.add(name=name)
        if "|" in fields:
            message.oneof_decl.add(name="value")
        for field in fields.split(", "):
            _add_field(message, field)
    pool = descriptor_pool.DescriptorPool()  # of our own: torchair registers the same names in the default one
    pool.Add(file)
    names = [message.name for message in file.message_type]
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names}
    )


def _add_field(message: Any, text: str) -> None:
    """Add the field ``[*|]name=number type`` to a DescriptorProto."""
    name, _, rest = text.partition("=")
    number, _, kind = rest.partition(" ")
    field = message.field.add(name=name.lstrip("*|"), number=int(number))
    field.label = field.LABEL_REPEATED if name.startswith("*") or kind == "map" else field.LABEL_OPTIONAL
    if name.startswith("|"):
        field.oneof_index = 0
    if kind == "map":
        entry = message.nested_type.add(name="AttrEntry")
        entry.options.map_entry = True
        for part in ("key=1 string", "value=2 AttrDef"):
            _add_field(entry, part)
        kind = f"{message.name}.AttrEntry"
    if kind in ("bytes", "string", "bool", "float", "int64", "uint32"):
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.type = field.TYPE_ENUM if kind in _ENUMS else field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
