"""The bundle: its files, its manifest, and the check that it still is what was exported.

model.onnx, model.onnx.data      the decoder and its weights
genai_config.json, tokenizer     what onnxruntime-genai and `export.runtime.model` read
manifest.json                    written last: sha256 and size of every other file, how it was made, coverage, parity

It may lie in the hub's cache, whose snapshots are links (`external_data.py`), and beside what others put there that
nothing reads (`manifest.foreign`).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from compress.digests import digest_file
from compress.stage import first_line
from export.coverage import coverage
from export.external_data import GRAPH, BundleIntegrityError, external_files, read_graph, real_file
from export.manifest import MANIFEST, bundle_folder, check_listed, foreign, listed, read_manifest
from export.runtime.session import Provider

if TYPE_CHECKING:
    from onnx import ModelProto

DATA = "model.onnx.data"


@dataclass(frozen=True, kw_only=True, repr=False)
class BundleSummary:
    """What a verified bundle is."""

    folder: Path
    provider: Provider
    files: int
    size: int
    """Bytes of all files."""
    foreign: tuple[str, ...]
    """Names of what others put beside them, which nothing reads."""
    placement: dict[str, Any]
    arithmetic: dict[str, Any]
    coverage: dict[str, Any]
    parity: dict[str, Any]
    libraries: dict[str, str]

    def __repr__(self) -> str:
        return f"BundleSummary({self.folder}: whole, for {self.provider}, {self.files} files, {self.size / 1e6:.1f} MB)"


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
    _check_graph(model, folder)
    check_listed(model, folder, manifest)
    if coverage(model) != manifest["coverage"]:
        raise BundleIntegrityError(
            f"{folder / MANIFEST}: the coverage it states is not the graph's; export the bundle again"
        )
    return BundleSummary(
        folder=folder,
        provider=manifest["provider"],
        files=len(manifest["files"]) + 1,
        size=sum(entry["bytes"] for entry in manifest["files"].values()) + (folder / MANIFEST).stat().st_size,
        foreign=tuple(foreign(folder)),
        placement=manifest["placement"],
        arithmetic=manifest["arithmetic"],
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
        try:
            file = real_file(folder / name)
        except BundleIntegrityError as error:
            faults.append(str(error).removeprefix(f"{folder}{os.sep}"))
            continue
        if file.stat().st_size != files[name]["bytes"]:
            faults.append(f"{name}: expected {files[name]['bytes']} bytes, got {file.stat().st_size}")
        elif digest_file(file) != files[name]["sha256"]:
            faults.append(f"{name}: its content changed (sha256)")
    if faults:
        raise BundleIntegrityError(f"{folder}: not the bundle that was exported: {'; '.join(faults)}. Export it again")


def _check_graph(model: "ModelProto", folder: Path) -> None:
    """The ONNX checker's rules. It looks for plain files beside the graph, and not into them: empty ones stand in."""
    import onnx

    with TemporaryDirectory(prefix="demitasse-") as place:
        for name in external_files(model):
            with Path(place, name).open("wb") as stand_in:
                stand_in.truncate((folder / name).stat().st_size)  # takes no room
        Path(place, GRAPH).write_bytes((folder / GRAPH).read_bytes())
        try:
            onnx.checker.check_model(Path(place, GRAPH))
        except (onnx.checker.ValidationError, ValueError) as error:
            told = first_line(error).replace(f"{place}{os.sep}", "")
            raise BundleIntegrityError(f"{folder / GRAPH}: the ONNX checker refuses it ({told})") from error
