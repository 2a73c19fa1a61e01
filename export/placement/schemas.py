"""What operators are, as the installed ONNX Runtime knows them: ONNX's own and its contributed ones.

A schema names for each input and output a type, which is a variable such as `T`, the same for all that bear it, or a
type itself such as `tensor(int64)`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from export.placement.element_types import shorter


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A formal input or output."""

    name: str
    type: str
    """A variable of the schema, or a type."""
    optional: bool
    variadic: bool


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One version of an operator."""

    domain: str
    name: str
    since: int
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    variables: dict[str, tuple[str, ...]]
    """Each variable -> the types that it may be."""
    required: tuple[tuple[str, str], ...]
    """Attributes that must be given, and their kinds."""

    def types(self, parameter: Parameter) -> tuple[str, ...]:
        """What a parameter may be."""
        return self.variables.get(parameter.type, (shorter(parameter.type),))

    def input(self, position: int) -> Parameter:
        """The formal input of a node's input; the last one may stand for many."""
        return self.inputs[min(position, len(self.inputs) - 1)]

    def output(self, position: int) -> Parameter:
        """The same of an output."""
        return self.outputs[min(position, len(self.outputs) - 1)]


@cache
def schemas() -> dict[tuple[str, str], list[Schema]]:
    """Every version of every operator, by domain and name."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found: dict[tuple[str, str], list[Schema]] = {}
    for given in get_all_operator_schema():
        found.setdefault((given.domain, given.name), []).append(_schema(given))
    return found


def schema_of(domain: str, name: str, opset: int) -> Schema | None:
    """The version of an operator that holds in an opset; None where ONNX Runtime has no such operator."""
    versions = [schema for schema in schemas().get((domain, name), []) if schema.since <= opset]
    return max(versions, key=lambda schema: schema.since, default=None)


def _schema(given: Any) -> Schema:
    return Schema(
        domain=given.domain,
        name=given.name,
        since=given.since_version,
        inputs=tuple(map(_parameter, given.inputs)),
        outputs=tuple(map(_parameter, given.outputs)),
        variables={
            variable.type_param_str: tuple(map(shorter, variable.allowed_type_strs))
            for variable in given.type_constraints
        },
        required=tuple(
            (name, str(attribute.type).rpartition(".")[2])
            for name, attribute in sorted(given.attributes.items())
            if attribute.required
        ),
    )


def _parameter(given: Any) -> Parameter:
    option = str(given.option).rpartition(".")[2]
    return Parameter(name=given.name, type=given.typeStr, optional=option == "Optional", variadic=option == "Variadic")
