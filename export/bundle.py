"""The bundle: its files, its manifest, and the check that it still is what was exported.

model.onnx, model.onnx.data      the decoder and its weights
genai_config.json, tokenizer     what onnxruntime-genai and `export.runtime.model` read
manifest.json                    written last: sha256 and size of every other file, how it was made, coverage, parity
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.digests import digest_file
from compress.stage import first_line
from export.coverage import coverage
from export.external_data import GRAPH, BundleIntegrityError, external_files, read_graph
from export.manifest import MANIFEST, bundle_folder, listed, read_manifest
from export.runtime.session import Provider

DATA = "model.onnx.data"


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


def verify_bundle(folder: Path) -> BundleSummary:
    """Check every file's sha256, where the weights lie, the ONNX checker's rules, and that coverage is as stated.

    Raises:
        BundleError: the folder is no bundle.
        BundleIntegrityError: it is one, and something in it changed.
    """
    folder = bundle_folder(folder)
    manifest = read_manifest(folder)
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


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    """Exactly the files that the manifest lists, plain, with their sizes and hashes; every fault in one message."""
    found = listed(folder)
    faults = [f"{name}: missing" for name in sorted(set(files) - set(found))]
    faults += [f"{name}: not in the manifest" for name in sorted(set(found) - set(files))]
    for name in sorted(set(files) & set(found)):
        file = folder / name
        if file.is_symlink() or not file.is_file():
            faults.append(f"{name}: expected a plain file, got a link or a folder")
        elif file.stat().st_size != files[name]["bytes"]:
            faults.append(f"{name}: expected {files[name]['bytes']} bytes, got {file.stat().st_size}")
        elif digest_file(file) != files[name]["sha256"]:
            faults.append(f"{name}: its content changed (sha256)")
    if faults:
        raise BundleIntegrityError(f"{folder}: not the bundle that was exported: {'; '.join(faults)}. Export it again")


def _check_graph(folder: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(folder / GRAPH)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BundleIntegrityError(f"{folder / GRAPH}: the ONNX checker refuses it ({first_line(error)})") from error
