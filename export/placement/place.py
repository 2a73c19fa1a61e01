"""Proof, on a machine without a GPU, that a graph runs wholly on ONNX Runtime's CUDA provider.

    place(read_graph(folder), folder) -> Placement(proven="static", nodes=212, shape_arithmetic=2, ...)

ONNX Runtime gives a node to CUDA if it has registered a kernel there for the node's version and types; all others fall
back to the CPU, without an error. The kernels are known (`kernel_table`), so the same can be told from the graph:

    constant      only constants go in: computed as a session opens, and nothing of it is left
    CUDA          there is a kernel of these types, and it does not refuse the node's attributes
    CPU, shapes   integers that are computed from shapes alone, which ONNX Runtime itself keeps on the CPU
    anything else is refused, by name

Where a value is made and where it is read must then be the same memory: if not, ONNX Runtime puts a copy into every
step. And a step must be one that CUDA can capture and replay, which runs nothing on the CPU again: nothing there may
depend on anything but shapes, which are the same in every step.

The graph is judged as it stands in the file. ONNX Runtime optimizes it first, but joins nodes of one provider only,
and what it joins CUDA's nodes to are kernels of CUDA; a test holds this to what sessions say.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from export.external_data import GRAPH
from export.placement.kernel_table import KernelTable, read_table
from export.placement.read_nodes import Node, Nodes, read_nodes
from export.placement.remarks import remarks
from export.runtime.session import PlacementError

if TYPE_CHECKING:
    from onnx import ModelProto

Device = Literal["constant", "cuda", "cpu"]
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
NO_SHAPES = frozenset({"float16", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"})
"""Types with which ONNX Runtime keeps no node on the CPU for the sake of shapes."""
SMALL = 100
"""Elements that a constant may have for the same."""
WAY_OUT = "export it again with `provider: cuda`, or with `provider: cpu`"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is proven of where a graph runs."""

    proven: Literal["static", "unknown"]
    """unknown: nothing is known of this ONNX Runtime, or of a node; the remarks say what."""
    onnxruntime: str
    """Its version."""
    sm: tuple[str, ...]
    """GPUs that its kernels were compiled for: sm_80; sm_90a is exactly that one."""
    nodes: int
    """Run on CUDA in every step, as the graph stands in the file."""
    shape_arithmetic: int
    """Run on the CPU, when a step's shapes are new."""
    remarks: tuple[str, ...]


def place(graph: "ModelProto", folder: Path) -> Placement:
    """Where the nodes of the graph in `folder` run if a session is opened on CUDA.

    Raises:
        PlacementError: one of them does not run on CUDA, or a step could not be captured; the message names it.
    """
    import onnxruntime

    version = onnxruntime.__version__
    table = read_table(version)
    if table is None:
        said = f"nothing is known of ONNX Runtime {version}'s kernels for CUDA: only a GPU can prove where it runs"
        return _unknown(version, (said,))
    nodes = read_nodes(graph)
    devices = assign(nodes, table, folder)
    unknown = [*nodes.unknown, *_check_memory(nodes, devices, table, folder)]
    if unknown:
        return _unknown(version, tuple(unknown), table.architectures)
    return Placement(
        proven="static",
        onnxruntime=version,
        sm=table.architectures,
        nodes=sum(device == "cuda" for device in devices),
        shape_arithmetic=sum(device == "cpu" for device in devices),
        remarks=remarks(nodes.nodes, table),
    )


def _unknown(version: str, said: tuple[str, ...], architectures: tuple[str, ...] = ()) -> Placement:
    return Placement(proven="unknown", onnxruntime=version, sm=architectures, nodes=0, shape_arithmetic=0, remarks=said)


def assign(nodes: Nodes, table: KernelTable, folder: Path) -> list[Device]:
    """The device of each node, in their order.

    Raises:
        PlacementError: a node runs on neither as it should.
    """
    devices: list[Device] = []
    on_host: set[str] = set()
    for node in nodes.nodes:
        device = _device(node, nodes, table, on_host, folder)
        devices.append(device)
        if device == "cpu":
            on_host |= set(node.outputs)
        elif device == "cuda":
            on_host |= {node.outputs[position] for position in _host(node, table)[1] if position < len(node.outputs)}
    return devices


def _device(node: Node, nodes: Nodes, table: KernelTable, on_host: set[str], folder: Path) -> Device:
    if node.operator in CONTROL_FLOW:
        raise _error(folder, node, "is control flow, which CUDA cannot capture in a step that is to be replayed")
    if node.constant:
        return "constant"
    if node.schema is None:
        raise _error(folder, node, f"is no operator that ONNX Runtime {table.version} has")
    reason = table.why_not(node.schema, node.input_types, node.output_types)
    if reason:
        if _computes_shapes(node, nodes, on_host):
            return "cpu"
        raise _error(folder, node, f"would run on the CPU: {reason}")
    if refused := table.refusal(node.operator, node.facts):
        raise _error(folder, node, f"is refused by CUDA's kernel: {refused}")
    return "cpu" if _kept_for_shapes(node, nodes, table, on_host) else "cuda"


def _computes_shapes(node: Node, nodes: Nodes, on_host: set[str]) -> bool:
    """Whether a node that must run on the CPU may: it reads nothing but what shapes gave and constants."""
    return all(name in on_host or name in nodes.constants for name in filter(None, node.inputs))


def _kept_for_shapes(node: Node, nodes: Nodes, table: KernelTable, on_host: set[str]) -> bool:
    """ONNX Runtime's own rule (GetCpuPreferredNodes): it reads small things in the host's memory only, and one of them
    its kernel on CUDA would read in the device's.
    """
    if not any(name in on_host for name in node.inputs):
        return False
    wanted_on_host, _ = _host(node, table)
    for position, (name, kind) in enumerate(zip(node.inputs, node.input_types, strict=True)):
        if kind in NO_SHAPES:
            return False
        if nodes.constants.get(name, SMALL + 1) <= SMALL or name in nodes.inputs:
            continue
        if name not in on_host or position in wanted_on_host:
            return False
    return True


def _host(node: Node, table: KernelTable) -> tuple[frozenset[int], frozenset[int]]:
    known = node.schema and table.host_memory(node.schema)
    return known or (frozenset(), frozenset())


def _check_memory(nodes: Nodes, devices: list[Device], table: KernelTable, folder: Path) -> list[str]:
    """Each value must be read in the memory in which it was made; what is not known of that.

    Raises:
        PlacementError: a step copies something between devices, or reads an input on the CPU.
    """
    made = _where_made(nodes, devices, table)
    unknown = []
    for node, device in zip(nodes.nodes, devices, strict=True):
        if device == "constant":
            continue
        if device == "cuda" and node.schema and table.host_memory(node.schema) is None:
            unknown.append(f"{node.name} ({node.operator}): nobody knows which of its inputs lie in the host's memory")
        for position, name in enumerate(node.inputs):
            on_host = device == "cpu" or position in _host(node, table)[0]
            _check_read(folder, node, name, on_host, made, nodes)
    for node, device in zip(nodes.nodes, devices, strict=True):
        for name in node.outputs:
            if name in nodes.outputs and made.get(name) and device != "constant":
                raise _error(folder, node, f"makes the graph's output {name} on the CPU, which a replay does not do")
    return unknown


def _where_made(nodes: Nodes, devices: list[Device], table: KernelTable) -> dict[str, bool]:
    """Of every value that a node makes whether it lies in the host's memory."""
    made: dict[str, bool] = {}
    for node, device in zip(nodes.nodes, devices, strict=True):
        on_host = _host(node, table)[1]
        if device != "constant":
            made |= {name: device == "cpu" or position in on_host for position, name in enumerate(node.outputs)}
    return made


def _check_read(folder: Path, node: Node, name: str, on_host: bool, made: dict[str, bool], nodes: Nodes) -> None:
    if name in nodes.inputs and on_host:
        raise _error(folder, node, f"reads the graph's input {name} on the CPU: a replay would not read it again")
    if name in made and made[name] != on_host:
        way = "from the device to the CPU" if on_host else "from the CPU to the device"
        raise _error(folder, node, f"reads {name}, which every step would copy {way}")


def _error(folder: Path, node: Node, reason: str) -> PlacementError:
    return PlacementError(f"cuda: {folder / GRAPH}: the node {node.name} ({node.operator}) {reason}; {WAY_OUT}")
