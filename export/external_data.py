"""What an ONNX file may point at: plain files beside it, and nothing else.

An ONNX file is untrusted input. Its weights may lie in "external data" files that it names by a path, an offset and a
length, and such paths have escaped their folder in several advisories (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187,
CVE-2025-51480). Here the graph is read first, without its weights, and refused unless every location is a plain file
in the bundle's own folder, and every range lies inside that file, has the tensor's size and overlaps no other. Only
then does ONNX Runtime get it, as the very bytes that were checked.

No link is followed but those that the Hugging Face hub's cache is made of, which lead from a snapshot to a plain file
in the store of the same repository:

    models--me--bundle/snapshots/<commit>/model.onnx.data -> ../../blobs/<hash>
"""

import math
import os
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import DemitasseError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

GRAPH = "model.onnx"
MOST_GRAPH = 2**31
"""Bytes from which on protobuf reads no message."""


class BundleError(DemitasseError):
    """A folder is not a bundle that can be used; the message names the file, what was expected and the way out."""


class BundleIntegrityError(BundleError):
    """A bundle is not what was exported: changed, cut short, or pointing outside of itself."""

    exit_code = 5


def read_graph(folder: Path) -> "ModelProto":
    """The bundle's graph without its weights, after checking where those lie.

    Raises:
        BundleError: there is no graph.
        BundleIntegrityError: it cannot be parsed, or its external data is not what is described above.
    """
    import onnx
    from google.protobuf.message import DecodeError

    file = folder / GRAPH
    if not os.path.lexists(file):
        raise BundleError(f"{folder}: expected a bundle with {GRAPH}; give a folder that `demitasse export` wrote")
    if real_file(file).stat().st_size >= MOST_GRAPH:
        raise BundleIntegrityError(f"{file}: expected an ONNX graph, which is under 2 GiB; export it again")
    try:
        model = onnx.load_model_from_string(file.read_bytes())
    except DecodeError as error:
        raise BundleIntegrityError(f"{file}: expected an ONNX graph ({error}); export it again") from error
    check_external_data(model, folder)
    return model


def check_external_data(model: "ModelProto", folder: Path) -> None:
    """Raises BundleIntegrityError unless every external tensor of `model` lies inside a plain file of `folder`, and
    none overlap.
    """
    ranges: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in _external_tensors(model):
        location, offset, length = _place(tensor, folder)
        ranges.setdefault(location, []).append((offset, offset + length, tensor.name))
    for location, found in ranges.items():
        found.sort()
        for (_, end, before), (start, _, after) in pairwise(found):
            if start < end:
                raise BundleIntegrityError(
                    f"{folder / location}: the weights {before!r} and {after!r} overlap; export it again"
                )


def external_files(model: "ModelProto") -> set[str]:
    """Names of the files that hold external data."""
    return {_entries(tensor).get("location", "") for tensor in _external_tensors(model)}


def _place(tensor: "TensorProto", folder: Path) -> tuple[str, int, int]:
    entries = _entries(tensor)
    location = entries.get("location", "")
    if not location or location in {".", ".."} or any(sign in location for sign in ("/", "\\", ":", "\x00")):
        raise BundleIntegrityError(
            f"{folder / GRAPH}: the weight {tensor.name!r} points at {location!r}; "
            "expected a file in the bundle's own folder"
        )
    size = real_file(folder / location).stat().st_size
    try:
        expected = tensor_bytes(tensor)
    except KeyError as error:
        raise BundleIntegrityError(
            f"{folder / GRAPH}: the weight {tensor.name!r} is of type {error}, unknown to ONNX; export it again"
        ) from error
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(expected)))
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != expected or offset + length > size:
        raise BundleIntegrityError(
            f"{folder / location}: the weight {tensor.name!r} needs {expected} bytes, but is said to be {length} bytes "
            f"at {offset} of {size}; the file was cut short or swapped"
        )
    return location, offset, length


def real_file(file: Path) -> Path:
    """Where a bundle's file really lies: there, or where a snapshot of the hub's cache has it.

    Raises:
        BundleIntegrityError: it is missing, no plain file, or a link to anywhere else.
    """
    try:
        kind = stat.S_IFMT(file.lstat().st_mode)
        real = _in_hub_store(file) if kind == stat.S_IFLNK else file
    except OSError as error:
        raise BundleIntegrityError(
            f"{file}: missing or unreadable ({error.strerror}); export the bundle again"
        ) from error
    if real is None or not stat.S_ISREG(real.lstat().st_mode):
        came = "a link" if kind == stat.S_IFLNK else "no plain file"
        raise BundleIntegrityError(
            f"{file}: expected a plain file, got {came}; a bundle may not point outside of itself"
        )
    return real


def _in_hub_store(link: Path) -> Path | None:
    """What a link of a snapshot leads to, if that lies in the store of the snapshot's own repository."""
    folder = link.parent.resolve()
    target = Path(os.path.normpath(folder / link.readlink()))
    snapshots = next((above for above in folder.parents if above.name == "snapshots"), None)
    inside = snapshots is not None and target.parent == snapshots.parent / "blobs"
    return target if inside and os.path.lexists(target) and not target.parent.is_symlink() else None


def as_it_lies(model: "ModelProto", folder: Path) -> "tuple[ModelProto, Path]":
    """The graph with its weights by the names that their files have where they really lie, and that folder.

    ONNX Runtime follows no link either.
    """
    from onnx import ModelProto

    places = {name: real_file(folder / name) for name in external_files(model)}
    if all(place == folder / name for name, place in places.items()):
        return model, folder
    if len({place.parent for place in places.values()}) > 1:
        raise BundleIntegrityError(f"{folder}: some of its files are links and some are not; fetch the bundle again")
    renamed = ModelProto()
    renamed.CopyFrom(model)
    for tensor in _external_tensors(renamed):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = places[entry.value].name
    return renamed, next(iter(places.values())).parent


def tensor_bytes(tensor: "TensorProto") -> int:
    """What a tensor's values take."""
    from onnx.helper import tensor_dtype_to_np_dtype

    count: int = math.prod(tensor.dims)
    return count * int(tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _entries(tensor: "TensorProto") -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_tensors(model: "ModelProto") -> list["TensorProto"]:
    from onnx import TensorProto

    return [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]


def _tensors(message: "Message") -> Iterator["TensorProto"]:
    """Every tensor in a message, whichever field holds it: graphs, sparse tensors, attributes, functions, training."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _tensors(part)
