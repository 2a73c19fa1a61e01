"""What one version of ONNX Runtime can do on CUDA: `kernels/onnxruntime-<version>.json`, which make_kernel_table.py
writes and a test makes again.

    architectures   GPUs that the provider was compiled for: sm_80; sm_90a runs on exactly that one
    types           every set of types that a kernel takes somewhere, "float float16"
    kernels         operator -> [first version, last one or null, {type variable: number of a set}]
    host            operator -> [inputs, outputs] that lie in the host's memory; null where nothing is known;
                    no entry: none do
    refused         what kernels refuse though they are registered (trials.py): [operator, facts, message]
    fast            faster kernels that are off unless asked for: name -> facts with which they are taken
    xqa             attention that the fastest decoding kernels take

An operator is written `GroupQueryAttention of com.microsoft`; ONNX's own have their names alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from export.placement.node_facts import Facts
from export.placement.registered_kernels import NO_END, is_for
from export.placement.schemas import Schema

FOLDER = Path(__file__).with_name("kernels")
HostMemory = tuple[frozenset[int], frozenset[int]]
"""Inputs, and outputs, of a kernel that lie in the host's memory."""


@dataclass(frozen=True, kw_only=True)
class TakenTypes:
    """A kernel: the versions of its operator, and the types that it takes for each variable of the schema."""

    first: int
    last: int
    types: dict[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class KernelTable:
    """The table of one version."""

    version: str
    architectures: tuple[str, ...]
    kernels: dict[str, list[TakenTypes]]
    host: dict[str, HostMemory | None]
    refused: list[tuple[str, dict[str, list[Any]], str]]
    fast: dict[str, dict[str, list[Any]]]
    xqa: dict[str, list[int]]

    def why_not(self, schema: Schema, inputs: list[str], outputs: list[str]) -> str:
        """Why CUDA has no kernel of an operator with these types; empty where it has one. A type of "" is not there."""
        kernels = self.kernels.get(operator(schema.domain, schema.name), [])
        versions = [kernel for kernel in kernels if is_for(kernel.first, kernel.last, schema.since)]
        if not kernels:
            return "CUDA has no kernel of it"
        if not versions:
            return f"CUDA has no kernel of its version {schema.since}"
        found = [_mismatch(kernel, schema, inputs, outputs) for kernel in versions]
        return "" if None in found else f"CUDA has no kernel of it {_explained(found[0], versions)}"

    def host_memory(self, schema: Schema) -> HostMemory | None:
        """What of a node lies in the host's memory; None: nobody knows."""
        return self.host.get(operator(schema.domain, schema.name), (frozenset(), frozenset()))

    def refusal(self, name: str, facts: Facts) -> str:
        """With which message a kernel refuses a node; empty where it does not."""
        for refused, when, says in self.refused:
            if refused == name and holds(when, facts):
                return says
        return ""


def operator(domain: str, name: str) -> str:
    """As the table writes it."""
    return f"{name} of {domain}" if domain else name


def holds(when: dict[str, list[Any]], facts: Facts) -> bool:
    """Whether each fact has one of the values."""
    return all(name in facts and facts[name] in values for name, values in when.items())


def path_of(version: str) -> Path:
    """Where the table of a version lies, if there is one."""
    return FOLDER / f"onnxruntime-{version}.json"


@cache
def read_table(version: str) -> KernelTable | None:
    """The table of a version of ONNX Runtime; None where there is none."""
    path = path_of(version)
    return _parse(version, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _parse(version: str, content: dict[str, Any]) -> KernelTable:
    sets = [frozenset(types.split()) for types in content["types"]]
    return KernelTable(
        version=version,
        architectures=tuple(content["architectures"]),
        kernels={
            name: [
                TakenTypes(first=first, last=last or NO_END, types={key: sets[number] for key, number in types.items()})
                for first, last, types in rows
            ]
            for name, rows in content["kernels"].items()
        },
        host={name: _host(places) for name, places in content["host"].items()},
        refused=[tuple(row) for row in content["refused"]],
        fast=content["fast"],
        xqa=content["xqa"],
    )


def _host(places: list[list[int]] | None) -> HostMemory | None:
    return None if places is None else (frozenset(places[0]), frozenset(places[1]))


Mismatch = tuple[str, str]
"""A variable of a schema, and the type that a node gives it."""


def _mismatch(kernel: TakenTypes, schema: Schema, inputs: list[str], outputs: list[str]) -> Mismatch | None:
    """The first type of a node that a kernel does not take. Of a variable with several values the first one counts."""
    for variable, taken in kernel.types.items():
        given = next(_types_of(variable, schema, inputs, outputs), "")
        if given and given not in taken:
            return variable, given
    return None


def _explained(mismatch: Mismatch | None, kernels: list[TakenTypes]) -> str:
    variable, given = mismatch or ("", "")
    taken = {kind for kernel in kernels for kind in kernel.types.get(variable, ())}
    other = f"it takes {', '.join(sorted(taken))}" if given not in taken else "beside the node's other types"
    return f"for {given} ({variable}): {other}"


def _types_of(variable: str, schema: Schema, inputs: list[str], outputs: list[str]) -> Iterator[str]:
    """Types of the values that a variable, or a parameter's own name, stands for; inputs come first."""
    for parameters, types in ((schema.inputs, inputs), (schema.outputs, outputs)):
        for parameter, kind in zip(parameters, types, strict=False):
            if kind and variable in (parameter.type, parameter.name):
                yield kind
