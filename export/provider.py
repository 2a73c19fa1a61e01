"""Proof that the bundle runs where it was asked to: the session's own profile says for every node which provider ran
it. Where there is no GPU, the kernels that the provider registers say which node it would take (`export.placement`).

Asked for CUDA, every node that computes must run on CUDA, without a copy between devices inside a step. Shape
arithmetic (nodes that only ever see integers) belongs on the CPU and is set aside.
"""

import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.runtime.gpu import gpus
from export.runtime.model import BundleConfig, OnnxCausalLM
from export.runtime.session import PROVIDERS, PlacementError, Provider, is_here, open_session

if TYPE_CHECKING:
    from onnx import ModelProto

STEPS = 3


def prove_placement(folder: Path, graph: "ModelProto", provider: Provider) -> dict[str, Any]:
    """Where the nodes of a bundle's graph run, and what proves it, as plain data for the manifest.

    Raises:
        PlacementError: a node that computes would run, or ran, elsewhere.
    """
    if provider == "cpu":
        return {"proven": "profile", **prove_provider(folder, provider)}
    from export.placement import place

    told = asdict(place(graph, folder)) | {"provider": provider}
    if not is_here(provider):
        return told
    return told | {"proven": "profile", **prove_provider(folder, provider), "device": gpus()[0].name}


def prove_provider(folder: Path, provider: Provider) -> dict[str, Any]:
    """Run a prompt and a few steps under the profiler; how many nodes ran on which provider.

    Raises:
        PlacementError: a node that computes ran elsewhere, or data was copied between devices within a step.
    """
    return judge_profile(profiled(folder, provider), provider)


def profiled(folder: Path, provider: Provider) -> list[dict[str, Any]]:
    """The events of a prompt and a few steps, as ONNX Runtime's profiler writes them down."""
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(folder, provider=provider, profile=Path(scratch) / "profile")
        cursor = OnnxCausalLM(session, BundleConfig.read(folder), provider=provider).cursor()
        cursor.prefill(np.zeros((1, 2), dtype=np.int64), reserve=STEPS)
        for _ in range(STEPS):
            cursor.step()
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def judge_profile(events: list[dict[str, Any]], provider: Provider) -> dict[str, Any]:
    """The verdict on a profile: {"provider", "nodes": runs by provider, "shape_arithmetic": runs set aside}.

    Raises:
        PlacementError: as in `prove_provider`.
    """
    runs = [event["args"] for event in events if event.get("cat") == "Node" and event.get("args", {}).get("provider")]
    if not runs:
        raise PlacementError(f"{provider}: the session's profile names no node; nothing is proven")
    expected = PROVIDERS[provider]
    copies = Counter(run["op_name"] for run in runs if run["op_name"].startswith("Memcpy"))
    if copies:
        raise PlacementError(f"{provider}: data is copied between devices inside a step ({_counted(copies)})")
    elsewhere = [run for run in runs if run["provider"] != expected]
    aside = [run for run in elsewhere if _sees_integers_only(run)]
    wrong = Counter(f"{run['op_name']} on {run['provider']}" for run in elsewhere if not _sees_integers_only(run))
    if wrong:
        raise PlacementError(f"{provider}: expected every node that computes on {expected}, got {_counted(wrong)}")
    return {"provider": provider, "nodes": len(runs) - len(aside), "shape_arithmetic": len(aside)}


def _sees_integers_only(run: dict[str, Any]) -> bool:
    types = {kind for entry in run.get("input_type_shape", []) for kind in entry}
    return all(kind.startswith(("int", "uint", "bool")) for kind in types)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
