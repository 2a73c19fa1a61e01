"""What a bundle says of itself: manifest.json, written last, and the one place where it is read.

sha256 and size of every other file, the provider it was exported for, how it was made, placement, arithmetic, coverage,
parity; and the seal over all that (`compress.digests`). A bundle may lie in a folder of its own, or in a model
repository of Triton's.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.digests import digest_file, read_sealed, sealed
from export.external_data import GRAPH, BundleError, BundleIntegrityError, external_files, real_file

if TYPE_CHECKING:
    from onnx import ModelProto

MANIFEST = "manifest.json"
PROOF = "proof.json"
FORMAT = 4
OUTSIDE = {MANIFEST, PROOF, "artifact.json", "README.md"}
"""Files that no manifest lists: itself, what is proven later, the run store's own, and the model card, whose verdict
comes later.
"""
NOBODY_READS = re.compile(r"\..+|(LICENSE|LICENCE|NOTICE)(\.txt|\.md)?|Thumbs\.db|desktop\.ini")
"""What hubs, version control and file managers put beside a bundle, and the license of who publishes it."""
STATED = {"provider", "placement", "arithmetic", "coverage", "parity", "libraries"}


def bundle_folder(folder: Path) -> Path:
    """The bundle that `folder` is or holds: a bundle itself, or a model repository, model or version of Triton's.

    A folder that holds none comes back as it is: whatever opens it says what is missing.

    Raises:
        BundleError: it holds several.
    """
    if (folder / GRAPH).is_file():
        return folder
    places = ("onnx", GRAPH, f"[1-9]*/{GRAPH}", f"*/[1-9]*/{GRAPH}")
    found = sorted(place for pattern in places for place in folder.glob(pattern) if (place / GRAPH).is_file())
    if len(found) > 1:
        raise BundleError(
            f"{folder}: expected one bundle, found {len(found)}; give one of {', '.join(map(str, found))}"
        )
    return found[0] if found else folder


def is_bundle(folder: Path) -> bool:
    """Whether a folder is or holds a bundle."""
    return (bundle_folder(folder) / MANIFEST).is_file()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write manifest.json over the files that are in `folder` now."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest_file(folder / name)} for name in listed(folder)
    }
    (folder / MANIFEST).write_text(sealed({"format": FORMAT, "files": files} | about), encoding="utf-8")


def listed(folder: Path) -> list[str]:
    """Names of the files in a bundle's folder that its manifest is to list."""
    return sorted(name for name in os.listdir(folder) if name not in OUTSIDE and not NOBODY_READS.fullmatch(name))


def foreign(folder: Path) -> list[str]:
    """Names of what lies in a bundle's folder, belongs to others, and is read by nothing that runs a bundle."""
    return sorted(name for name in os.listdir(folder) if NOBODY_READS.fullmatch(name))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the bundle that a folder is or holds; whether it is true is another question.

    Raises:
        BundleError: the folder is no bundle.
        BundleIntegrityError: it is one, and its manifest is not what was written.
    """
    file = bundle_folder(folder) / MANIFEST
    if not os.path.lexists(file):
        raise BundleError(f"{folder}: expected a bundle with {MANIFEST}; give a folder that `demitasse export` wrote")
    try:
        manifest = read_sealed(real_file(file))
        entries = all({"bytes", "sha256"} <= set(entry) for entry in manifest["files"].values())
        missing = STATED - set(manifest) | {"self_test"} - set(manifest.get("parity", ()))
        if not missing:
            _check_shape(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleIntegrityError(
            f"{file}: expected a bundle's manifest as it was written ({error}); export it again"
        ) from error
    if manifest.get("format") != FORMAT or missing or not entries:
        raise BundleIntegrityError(
            f"{file}: expected a bundle's manifest of format {FORMAT}; export it again with this version"
        )
    return manifest


def _check_shape(manifest: dict[str, Any]) -> None:
    """What is shown of a manifest is of the kind that was written.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not.
    """
    placement = manifest["placement"]
    str(placement["proven"]), int(placement["nodes"]), int(placement["shape_arithmetic"])
    "".join([*placement.get("remarks", ()), *placement.get("sm", ()), manifest["arithmetic"]["proven"]])
    for name, checks in manifest["parity"].items():
        if name == "self_test":
            float(checks["kl"])
        elif isinstance(checks, dict):
            figures = checks["tolerance"]
            [float(check[figure]) for key, check in checks.items() if key != "tolerance" for figure in figures]


def check_listed(model: "ModelProto", folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a BundleIntegrityError where the graph reads a file that the manifest does not list."""
    unlisted = external_files(model) - set(manifest["files"])
    if unlisted:
        raise BundleIntegrityError(
            f"{folder / GRAPH}: its weights lie in {', '.join(sorted(unlisted))}, which the manifest does not list"
        )
