"""The bundle: its files, its manifest, and the check that it still is what was exported.

model.onnx, model.onnx.data      the decoder and its weights
genai_config.json, tokenizer     what onnxruntime-genai and `export.runtime` read
manifest.json                    written last: sha256 and size of every other file, how it was made, coverage, parity
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.coverage import coverage
from export.external_data import GRAPH, MANIFEST, BundleError, BundleIntegrityError, external_files, read_graph
from export.genai import write_json
from export.session import Provider
from export.triton import bundle_folder

__all__ = ["BundleError", "BundleIntegrityError", "BundleSummary", "verify_bundle", "write_manifest"]

DATA = "model.onnx.data"
FORMAT = 2
OUTSIDE = {MANIFEST, "artifact.json", "README.md"}
"""Files that no manifest lists: itself, the run store's own, and the model card, whose verdict comes later."""


@dataclass(frozen=True, kw_only=True)
class BundleSummary:
    """What a verified bundle is."""

    folder: Path
    provider: Provider
    files: int
    size: int
    """Bytes of all files."""
    coverage: dict[str, Any]
    parity: dict[str, Any]
    libraries: dict[str, str]


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write manifest.json over the files that are in `folder` now."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in _files(folder)
    }
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files} | about)


def verify_bundle(folder: Path) -> BundleSummary:
    """Check every file's sha256, where the weights lie, the ONNX checker's rules, and that coverage is as stated.

    Raises:
        BundleError: the folder is no bundle.
        BundleIntegrityError: it is one, and something in it changed.
    """
    folder = bundle_folder(folder)
    manifest = _read_manifest(folder)
    _check_files(folder, manifest["files"])
    model = read_graph(folder)
    _check_graph(folder)
    unlisted = external_files(model) - set(manifest["files"])
    if unlisted:
        raise BundleIntegrityError(
            f"{folder / GRAPH}: its weights lie in {', '.join(sorted(unlisted))}, which the manifest does not list"
        )
    if coverage(model) != manifest["coverage"]:
        raise BundleIntegrityError(
            f"{folder / MANIFEST}: the coverage it states is not the graph's; export the bundle again"
        )
    return BundleSummary(
        folder=folder,
        provider=manifest["provider"],
        files=len(manifest["files"]) + 1,
        size=sum(entry["bytes"] for entry in manifest["files"].values()) + (folder / MANIFEST).stat().st_size,
        coverage=manifest["coverage"],
        parity=manifest["parity"],
        libraries=manifest["libraries"],
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not folder.is_dir() or not file.is_file():
        raise BundleError(f"{folder}: expected a bundle with {MANIFEST}; give a folder that `demitasse export` wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        entries = all({"bytes", "sha256"} <= set(entry) for entry in manifest["files"].values())
        missing = {"provider", "coverage", "parity", "libraries"} - set(manifest)
        missing |= {"replay"} - set(manifest.get("parity", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleIntegrityError(f"{file}: expected a manifest ({error!r}); export the bundle again") from error
    if manifest.get("format") != FORMAT or missing or not entries:
        raise BundleIntegrityError(
            f"{file}: expected a manifest of format {FORMAT}; export the bundle again with this version"
        )
    return dict(manifest)


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    """Exactly the files that the manifest lists, plain, with their sizes and hashes; every fault in one message."""
    found = _files(folder)
    faults = [f"{name}: missing" for name in sorted(set(files) - set(found))]
    faults += [f"{name}: not in the manifest" for name in sorted(set(found) - set(files))]
    for name in sorted(set(files) & set(found)):
        file = folder / name
        if file.is_symlink() or not file.is_file():
            faults.append(f"{name}: expected a plain file, got a link or a folder")
        elif file.stat().st_size != files[name]["bytes"]:
            faults.append(f"{name}: expected {files[name]['bytes']} bytes, got {file.stat().st_size}")
        elif _sha256(file) != files[name]["sha256"]:
            faults.append(f"{name}: its content changed (sha256)")
    if faults:
        raise BundleIntegrityError(f"{folder}: not the bundle that was exported: {'; '.join(faults)}. Export it again")


def _check_graph(folder: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(folder / GRAPH)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BundleIntegrityError(
            f"{folder / GRAPH}: the ONNX checker refuses it ({str(error).splitlines()[0]})"
        ) from error


def _files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name not in OUTSIDE)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
