"""A graph's nodes with all that their placement depends on: operators, types, constants, facts of their attributes."""

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from export.placement.element_types import element_type
from export.placement.node_facts import Facts, Shape, facts_of
from export.placement.schemas import Schema, schema_of
from export.placement.value_types import output_types
from export.runtime.batch import LOGITS_FROM

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

NEVER_CONSTANT = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"})
UNKNOWN_SIZE = 1 << 62
"""Of a constant that is computed as a session opens."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node."""

    name: str
    operator: str
    schema: Schema | None
    """None: ONNX Runtime has no such operator."""
    inputs: list[str]
    outputs: list[str]
    input_types: list[str]
    """"" of an input that is not there."""
    output_types: list[str]
    constant: bool
    """Only constants go in."""
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A graph."""

    nodes: list[Node] = field(default_factory=list)
    inputs: set[str]
    """What must be given in every step."""
    outputs: set[str]
    constants: dict[str, int]
    """Name -> elements; also of what may be given in place of a constant (`logits_from`)."""
    given_at_will: set[str]
    """Constants that something else may be given in place of: what is computed from them is none."""
    unknown: list[str] = field(default_factory=list)
    """What keeps the graph from being judged."""


def read_nodes(model: "ModelProto") -> Nodes:
    """Every node of a graph, in order."""
    graph = _inlined(model).graph
    constants = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    named = {value.name for value in graph.input}
    nodes = Nodes(
        inputs=named - set(constants),
        outputs={value.name for value in graph.output},
        constants=constants,
        given_at_will=set(constants) & {*named, LOGITS_FROM},
    )
    opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in model.opset_import}
    types, shapes = _given(graph)
    for proto in graph.node:
        node = _read(proto, nodes, opsets, types, shapes)
        nodes.nodes.append(node)
        types |= dict(zip(node.outputs, node.output_types, strict=True))
        if node.constant:
            constants |= dict.fromkeys(node.outputs, 1 if proto.op_type == "Constant" else UNKNOWN_SIZE)
    return nodes


def _inlined(model: "ModelProto") -> "ModelProto":
    from onnx import inliner

    return inliner.inline_local_functions(model) if model.functions else model


def _given(graph: "GraphProto") -> tuple[dict[str, str], dict[str, Shape]]:
    """Types and shapes of inputs and initializers, and whatever else the graph says."""
    types: dict[str, str] = {"": ""}
    shapes: dict[str, Shape] = {}
    for value in [*graph.value_info, *graph.output, *graph.input]:
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = element_type(tensor.elem_type)
            shapes[value.name] = [size.dim_value or None for size in tensor.shape.dim]
    for constant in graph.initializer:
        types[constant.name] = element_type(constant.data_type)
        shapes[constant.name] = list(constant.dims)
    return types, shapes


def _read(
    proto: "NodeProto", nodes: Nodes, opsets: dict[str, int], types: dict[str, str], shapes: dict[str, Shape]
) -> Node:
    name = proto.name or next(iter(proto.output), proto.op_type)
    domain = proto.domain.replace("ai.onnx", "") if proto.domain == "ai.onnx" else proto.domain
    schema = schema_of(domain, proto.op_type, opsets.get(domain, 1))
    inputs, outputs = list(proto.input), list(proto.output)
    input_types = [types.get(value, "") for value in inputs]
    found = output_types(proto, schema, input_types) if schema else [""] * len(outputs)
    found = [kind or types.get(value, "") if value else "" for kind, value in zip(found, outputs, strict=True)]
    untold = [value for value, kind in zip(outputs, found, strict=True) if value and not kind]
    if schema and untold:
        nodes.unknown.append(f"{name} ({proto.op_type}): the type of {untold[0]} is not to be told")
    fixed = all(not value or (value in nodes.constants and value not in nodes.given_at_will) for value in inputs)
    return Node(
        name=name,
        operator=proto.op_type,
        schema=schema,
        inputs=inputs,
        outputs=outputs,
        input_types=input_types,
        output_types=found,
        constant=fixed and proto.op_type not in NEVER_CONSTANT,
        facts=facts_of(proto, input_types, [shapes.get(value) for value in inputs]),
    )
