"""Which inputs and outputs of CUDA's kernels lie in the host's memory, such as the shape that Reshape reads.

No listing tells it, but a session tells where it wants each graph input and where it leaves each graph output. So for
every operator that CUDA has a kernel of, a model of one node is made from the operator's schema: with every input that
it may have, else with those alone that it must have, each of the first type that the kernel takes. Of an operator for
which neither opens (it wants attributes that make sense) nothing is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.placement.assignments import Asked, Told, ask
from export.placement.element_types import element_number, is_tensor
from export.placement.one_node import IR_VERSION, MODELS
from export.placement.registered_kernels import Kernel, is_for
from export.placement.schemas import Schema, schemas

NEWEST_OPSET = 26
"""Later ones are not released, and ONNX Runtime refuses them."""
PLAIN: dict[str, Any] = {"INT": 1, "INTS": [1], "FLOAT": 1.0, "FLOATS": [1.0], "STRING": "x"}
"""Value of an attribute that must be given, by its kind."""
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Of one operator the positions of the inputs and outputs that lie in the host's memory."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def probe(libraries: Path, kernels: list[Kernel]) -> dict[tuple[str, str], HostMemory | None]:
    """Of every operator (domain, name) with a kernel what lies in the host's memory; None: it is not known."""
    operators = sorted({kernel[:2] for kernel in kernels})
    found: dict[tuple[str, str], HostMemory | None] = dict.fromkeys(operators)
    with TemporaryDirectory() as scratch:
        files = [file for operator in operators for file in _write(operator, kernels, Path(scratch))]
        answers = ask(libraries, [Asked(model=str(file), optimize=False) for _, file in files])
        for (operator, _), told in zip(files, answers, strict=True):
            if not told.error and found[operator] is None:
                found[operator] = _read(told)
    return found


def _write(operator: tuple[str, str], kernels: list[Kernel], folder: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """The models of an operator, the one that tells most first."""
    domain, name = operator
    own = [kernel for kernel in kernels if kernel[:2] == operator]
    own = [kernel for kernel in own if all(is_tensor(kind) for kinds in kernel[4].values() for kind in kinds[:1])]
    written = [_model(schema, kernel, whole) for schema, kernel in _newest(operator, own) for whole in (True, False)]
    written += [MODELS[name]({}).write()] if name in MODELS and domain else []
    for number, content in enumerate(written):
        file = folder / f"{domain}.{name}.{number}.onnx"
        file.write_bytes(content)
        yield operator, file


def _newest(operator: tuple[str, str], own: list[Kernel]) -> Iterator[tuple[Schema, Kernel]]:
    """The newest schema of an operator that one of its kernels is for."""
    for schema in sorted(schemas().get(operator, []), key=lambda schema: -schema.since):
        for kernel in own:
            if schema.since <= NEWEST_OPSET and is_for(kernel[2], kernel[3], schema.since):
                yield schema, kernel
                return


def _model(schema: Schema, kernel: Kernel, whole: bool) -> bytes:
    """One node with inputs of unknown shape; `whole`: with the optional ones too."""
    from onnx import TypeProto, ValueInfoProto, helper

    parameters = [parameter for parameter in schema.inputs if whole or not parameter.optional]
    values = []
    for position, parameter in enumerate(parameters):
        taken = kernel[4].get(parameter.type) or kernel[4].get(parameter.name) or schema.types(parameter)
        kind = TypeProto(tensor_type=TypeProto.Tensor(elem_type=element_number(taken[0])))
        values.append(ValueInfoProto(name=f"{INPUT}{position}", type=kind))
    results = [f"{OUTPUT}{position}" for position, result in enumerate(schema.outputs) if whole or not result.optional]
    node = helper.make_node(schema.name, [value.name for value in values], results, domain=schema.domain)
    node.attribute.extend(helper.make_attribute(name, PLAIN[kind]) for name, kind in schema.required if kind in PLAIN)
    graph = helper.make_graph([node], "one", values, [ValueInfoProto(name=name) for name in results])
    opsets = [helper.make_opsetid("", NEWEST_OPSET if schema.domain else schema.since)]
    opsets += [helper.make_opsetid(schema.domain, schema.since)] if schema.domain else []
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def _read(told: Told) -> HostMemory:
    names = {INPUT: told.inputs_on_host, OUTPUT: told.outputs_on_host}
    found = {kind: [name.removeprefix(kind) for name in listed] for kind, listed in names.items()}
    inputs, outputs = (tuple(sorted(int(name) for name in found[kind])) for kind in (INPUT, OUTPUT))
    return HostMemory(inputs=inputs, outputs=outputs)
