"""Section `placement`: which provider ran each node, as ONNX Runtime's profile on this GPU says, against the table that
tells it without a GPU (`export/placement`).

    python -m benchmarks.gpu --only placement

A node is known by its name. ONNX Runtime fuses nodes and makes new ones when it opens a graph, so some names are only
in the profile and some only in the table; they are counted by operator, and what differs is listed node by node.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.distillation_order import Part
from benchmarks.gpu_order import Json, Request, attempt
from benchmarks.gpu_parity import VERSIONS
from benchmarks.prepare import prepared
from export.external_data import read_graph
from export.placement.kernel_table import read_table
from export.placement.place import assign
from export.placement.read_nodes import read_nodes
from export.provider import profiled
from export.runtime.session import PROVIDERS

SUFFIX = "_kernel_time"


def placement(request: Request, part: Part) -> None:
    """Every version of the embedded teacher, a row each."""
    part.about(model=request.embedded.name)
    for version, kind in VERSIONS.items():
        request.tell(version)
        part.row(version, partial(attempt, partial(_placed, request, kind)))


def _placed(request: Request, kind: str) -> Json:
    bundle = prepared(kind, request.embedded, request.work / "embedded", "cuda").folder
    events = profiled(bundle, request.device)
    found = {"profile": counted(events)}
    table = attempt(lambda: {"nodes": static_providers(read_graph(bundle), bundle)})
    if table["error"]:
        return found | {"static": table["error"]}
    return found | {"static": ""} | compare(events, table["nodes"])


def static_providers(graph: Any, folder: Path) -> dict[str, str]:
    """Name of a node -> its provider, as the table says; constants are computed when a session opens, by neither.

    Raises:
        ProviderError: the table finds a node that CUDA would not run.
        LookupError: there is no table of this version of ONNX Runtime.
    """
    import onnxruntime

    table = read_table(onnxruntime.__version__)
    if table is None:
        raise LookupError(f"no table of ONNX Runtime {onnxruntime.__version__}'s kernels")
    nodes = read_nodes(graph)
    named = zip(nodes.nodes, assign(nodes, table, folder), strict=True)
    return {node.name: PROVIDERS[device] for node, device in named if device in PROVIDERS}


def runs_of(events: Iterable[Json]) -> dict[str, tuple[str, str]]:
    """Name of a node -> its operator and the provider that ran it."""
    return {
        str(event["name"]).removesuffix(SUFFIX): (event["args"]["op_name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }


def counted(events: Iterable[Json]) -> Json:
    """Provider -> operator -> how many nodes of it ran there."""
    found: dict[str, Counter[str]] = {}
    for operator, provider in runs_of(events).values():
        found.setdefault(provider, Counter())[operator] += 1
    return {provider: dict(sorted(counts.items())) for provider, counts in sorted(found.items())}


def compare(events: Iterable[Json], static: Mapping[str, str]) -> Json:
    """A profile against the table.

    Args:
        static: name of a node -> its provider.

    Returns:
        {"same": nodes on which both agree, "differences": [{"node", "operator", "profile", "static"}],
        "only_in_profile": {operator and provider: count}, "only_in_static": {provider: count}}
    """
    runs = runs_of(events)
    both = [name for name in runs if name in static]
    differences = [
        {"node": name, "operator": runs[name][0], "profile": runs[name][1], "static": static[name]}
        for name in both
        if runs[name][1] != static[name]
    ]
    made = Counter(f"{operator} on {provider}" for name, (operator, provider) in runs.items() if name not in static)
    gone = Counter(provider for name, provider in static.items() if name not in runs)
    return {
        "same": len(both) - len(differences),
        "differences": differences,
        "only_in_profile": dict(sorted(made.items())),
        "only_in_static": dict(sorted(gone.items())),
    }
