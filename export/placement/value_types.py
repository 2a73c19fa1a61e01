"""Types of a node's outputs, from the types of its inputs and its operator's schema.

An output whose type is the same variable as an input's has that input's type; a variable that can be one type only is
that; the few operators that say a type in an attribute are read. ONNX's own inference stops at contributed operators,
and ONNX Runtime tells no types of a graph that it does not run.
"""

from typing import TYPE_CHECKING

from export.placement.element_types import element_type
from export.placement.schemas import Parameter, Schema

if TYPE_CHECKING:
    from onnx import NodeProto

NUMBERED = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype"}
"""Operator -> the attribute that gives its output's type as a number."""
TENSORS = {"Constant": "value", "ConstantOfShape": "value"}
"""Operator -> the attribute whose tensor's type its output has."""
LISTED = {"value_int": "int64", "value_ints": "int64", "value_float": "float", "value_floats": "float"}
"""Of Constant: an attribute without a type -> what it is."""


def output_types(node: "NodeProto", schema: Schema, inputs: list[str]) -> list[str]:
    """The type of every output; "" where it is not to be told."""
    told = _told_by_attributes(node)
    return [told or _of_output(schema, schema.output(position), inputs) for position in range(len(node.output))]


def _told_by_attributes(node: "NodeProto") -> str:
    for attribute in node.attribute:
        if attribute.name == NUMBERED.get(node.op_type):
            return element_type(attribute.i)
        if attribute.name == TENSORS.get(node.op_type):
            return element_type(attribute.t.data_type)
        if node.op_type == "Constant" and attribute.name in LISTED:
            return LISTED[attribute.name]
    return "float" if node.op_type == "ConstantOfShape" else ""


def _of_output(schema: Schema, output: Parameter, inputs: list[str]) -> str:
    for position, kind in enumerate(inputs):
        if kind and schema.input(position).type == output.type:
            return kind
    possible = schema.types(output)
    return possible[0] if len(possible) == 1 else ""
