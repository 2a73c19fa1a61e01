"""What a bundle says of itself: manifest.json, written last, and the one place where it is read.

sha256 and size of every other file, the provider it was exported for, how it was made, placement, arithmetic, coverage,
parity; and the seal over all that (`compress.digests`). A bundle may lie in a folder of its own, or in a model
repository of Triton's.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from compress.checkpoints.config import in_one_line
from compress.digests import digest_file, read_sealed, sealed
from export.external_data import GRAPH, BundleError, BundleIntegrityError, external_files, real_file

if TYPE_CHECKING:
    from onnx import ModelProto

MANIFEST = "manifest.json"
PROOF = "proof.json"
SELF_TEST = "self_test"
FORMAT = 4
OUTSIDE = {MANIFEST, PROOF, "artifact.json", "README.md"}
"""Files that no manifest lists: itself, what is proven later, the run store's own, and the model card, whose verdict
comes later.
"""
NOBODY_READS = re.compile(r"\..+|(LICENSE|LICENCE|NOTICE)(\.txt|\.md)?|Thumbs\.db|desktop\.ini")
"""What hubs, version control and file managers put beside a bundle, and the license of who publishes it."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: int
    sha256: str


class _Placement(BaseModel):
    model_config = ConfigDict(strict=True)
    proven: str
    nodes: int
    shape_arithmetic: int
    onnxruntime: str = ""
    sm: list[str] = []
    remarks: list[str] = []


class _Arithmetic(BaseModel):
    model_config = ConfigDict(strict=True)
    proven: str
    pending: str = ""


class _Manifest(BaseModel):
    """What is read of a manifest, of whatever has a seal."""

    model_config = ConfigDict(strict=True)
    files: dict[str, _File]
    provider: Literal["cpu", "cuda"]
    placement: _Placement
    arithmetic: _Arithmetic
    coverage: dict[str, Any]
    parity: dict[str, int | dict[str, float | dict[str, float]]]
    libraries: dict[str, str]

    @model_validator(mode="after")
    def _figures(self) -> "_Manifest":
        """A self-test, and of every check the figures that its arithmetic's tolerance is about."""
        for name, checks in self.parity.items():
            if isinstance(checks, dict) and name != SELF_TEST:
                wanted = _keys(checks.get("tolerance"))
                if not wanted or not all(wanted <= _keys(check) for check in checks.values()):
                    raise ValueError(f"expected the same figures of every check in `parity: {name}`")
        if "kl" not in _keys(self.parity.get(SELF_TEST)):
            raise ValueError(f"expected `parity: {SELF_TEST}` with its `kl`")
        return self


def _keys(value: object) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


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
        if manifest.get("format") != FORMAT:
            raise BundleIntegrityError(
                f"{file}: expected a bundle's manifest of format {FORMAT}; export it again with this version"
            )
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{': '.join(map(str, first['loc']))}: {first['msg']}"
        raise _not_as_written(file, told) from error
    except ValueError as error:
        raise _not_as_written(file, in_one_line(error)) from error
    return manifest


def _not_as_written(file: Path, why: str) -> BundleIntegrityError:
    return BundleIntegrityError(f"{file}: expected a bundle's manifest as it was written ({why}); export it again")


def check_listed(model: "ModelProto", folder: Path, manifest: dict[str, Any]) -> None:
    """Raise a BundleIntegrityError where the graph reads a file that the manifest does not list."""
    unlisted = external_files(model) - set(manifest["files"])
    if unlisted:
        raise BundleIntegrityError(
            f"{folder / GRAPH}: its weights lie in {', '.join(sorted(unlisted))}, which the manifest does not list"
        )
