"""Ops on files: each is plain JSON, says which file and what to do, and does nothing where it no longer applies.

    {"file": "config.json", "do": "set", "path": ["n_layer"], "value": -1}        JSON files, headers of safetensors
    {"file": "tokenizer.json", "do": "bytes", "at": 17, "cut": 4, "with": "ff00"}  any file
    {"file": "model.safetensors", "do": "fifo"}                                    any file

Values come from a zoo of what people and programs really leave in files, and of neighbors of what stood there.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Op = dict[str, Any]
Place = tuple[str | int, ...]
ZOO: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 10**30, -(2**31), 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", " ", "x", "512", "none", "\u2028", "\x1b[31mred", "\ud800", "../x", "/etc/hostname", "C:\\x"),
    *("a" * 10_000, "{}", "<script>alert(1)</script>", "{{ 7 * 7 }}", "a\nb", "\u202eabc", "naïve", "😀"),
    *([], [1], [None], ["x"], [[]], [1, "x", None], {}, {"a": 1}, {"": None}, {"x": {"y": {"z": []}}}),
)
DEEP = 3000
"""Brackets of a value that nests too deeply to be read."""
LARGE = 10**8


def places(tree: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a tree of JSON, with its path."""
    yield path, tree
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def drawn_value(random: Random, before: Any) -> Any:
    """Something else in the place of a value."""
    if isinstance(before, bool) or random.random() < 0.5:
        return random.choice(ZOO)
    if isinstance(before, int | float):
        return random.choice((before + 1, before - 1, -before, before * 2, before * 1000, str(before), [before], 0))
    if isinstance(before, str):
        return random.choice(
            (before.upper(), before + "x", before[1:], before * 50, [before], " " + before, before[::-1])
        )
    if isinstance(before, list):
        return random.choice((before[::-1], before[:-1], before + before, [*before, None], {"0": before}, before[:1]))
    return [before] if before else random.choice(ZOO)


def drawn_path(random: Random, tree: Any) -> tuple[Place, Any]:
    """A place in a tree: walked down from the top, so that long lists do not hide the few keys above them."""
    path: Place = ()
    while isinstance(tree, dict | list) and tree and (not path or random.random() < 0.75):
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        path, tree = (*path, key), tree[key]
    return path, tree


def drawn_tree_op(random: Random, file: str, tree: Any) -> Op:
    """An op on a file of JSON."""
    path, before = drawn_path(random, tree)
    op: Op = {"file": file, "path": list(path)}
    do = random.choices(("set", "delete", "rename", "add", "again", "deep"), (10, 3, 1, 2, 1, 0.3))[0]
    if do == "set":
        return op | {"do": "set", "value": drawn_value(random, before)}
    if do == "rename":
        return op | {"do": "rename", "value": random.choice(("x", "", "Name", "\ud800", "__class__"))}
    if do == "add":
        return op | {"do": "add", "value": random.choice(ZOO), "key": random.choice(("extra", "", "auto_map", "$ref"))}
    return op | {"do": do}


def drawn_byte_op(random: Random, file: str, size: int) -> Op:
    """An op on bytes."""
    at = random.randrange(max(1, size))
    do = random.choice(("bytes", "bytes", "truncate", "repeat"))
    if do != "bytes":
        return {"file": file, "do": do, "at": at}
    put = random.choice(("", "00", "ff", "0a", "22", "7b", "efbbbf", "eda080", "e280a8", "fffe", "1b5b33316d", "2d31"))
    return {"file": file, "do": "bytes", "at": at, "cut": random.choice((0, 1, 1, 4, 64)), "with": put}


FILE_OPS = ("remove", "empty", "folder", "fifo", "link", "loop", "unreadable", "zeros", "huge")


def drawn_file_op(random: Random, file: str) -> Op:
    """An op on a file as a whole; only what is read as a whole becomes huge."""
    do = random.choice(FILE_OPS)
    return {"file": file, "do": "empty" if do == "huge" and not file.endswith((".json", ".yaml", ".txt")) else do}


def apply(op: Op, folder: Path) -> None:
    """Do it, if there is still something to do it to."""
    file = folder / op["file"]
    if not readable(file):
        return
    file.chmod(0o644)
    if op["do"] in FILE_OPS:
        _whole(op["do"], file)
    elif "path" in op and file.suffix == ".safetensors":
        _header(op, file)
    elif "path" in op:
        _tree(op, file)
    else:
        _bytes(op, file)


def readable(file: Path) -> bool:
    """Whether a file is one that the campaign itself may read: an op before may have made it endless."""
    return file.is_file() and file.stat().st_size < LARGE


def _tree(op: Op, file: Path) -> None:
    try:
        tree = parsed(file)
    except (ValueError, RecursionError, YAMLError):
        return
    file.write_text(_written(changed(op, tree)), encoding="utf-8")


def parsed(file: Path) -> Any:
    """What a file of JSON or YAML says."""
    text = file.read_text(encoding="utf-8")
    return YAML(typ="safe", pure=True).load(text) if file.suffix == ".yaml" else json.loads(text)


def _written(tree: Any) -> str:
    """JSON, in which a value that nests too deeply is spelled out."""
    return json.dumps(tree, indent=1).replace('"<deep>"', "[" * DEEP + "]" * DEEP)


def _header(op: Op, file: Path) -> None:
    """A safetensors file: eight bytes of length, a header of JSON, the data."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    try:
        tree = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return
    header = _written(changed(op, tree)).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def header_of(file: Path) -> Any:
    """The header of a safetensors file."""
    content = file.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def changed(op: Op, tree: Any) -> Any:
    """The tree after an op."""
    path: Sequence[str | int] = op["path"]
    if not path:
        return {"set": op.get("value"), "deep": "<deep>", "again": [tree, tree]}.get(op["do"], tree)
    holder = tree
    for key in path[:-1]:
        if not _has(holder, key):
            return tree
        holder = holder[key]
    if _has(holder, path[-1]):
        _CHANGES[op["do"]](holder, path[-1], op)
    return tree


def _has(holder: Any, key: str | int) -> bool:
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and isinstance(key, int) and key < len(holder)


def _set(holder: Any, key: Any, op: Op) -> None:
    holder[key] = op.get("value")


def _delete(holder: Any, key: Any, op: Op) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, op: Op) -> None:
    if isinstance(holder, dict):
        holder[op["value"]] = holder.pop(key)


def _add(holder: Any, key: Any, op: Op) -> None:
    if isinstance(holder, dict):
        holder[op["key"]] = op["value"]
    else:
        holder.insert(key, op["value"])


def _again(holder: Any, key: Any, op: Op) -> None:
    if isinstance(holder, dict):
        holder[f"{key}2"] = holder[key]
    else:
        holder.append(holder[key])


def _deep(holder: Any, key: Any, op: Op) -> None:
    holder[key] = "<deep>"


_CHANGES: dict[str, Callable[[Any, Any, Op], None]] = {
    "set": _set,
    "delete": _delete,
    "rename": _rename,
    "add": _add,
    "again": _again,
    "deep": _deep,
}


def _bytes(op: Op, file: Path) -> None:
    content = file.read_bytes()
    at = op["at"]
    if op["do"] == "truncate":
        file.write_bytes(content[:at])
    elif op["do"] == "repeat":
        file.write_bytes(content[:at] + content)
    else:
        file.write_bytes(content[:at] + bytes.fromhex(op["with"]) + content[at + op["cut"] :])


def _whole(do: str, file: Path) -> None:
    if do == "empty":
        file.write_bytes(b"")
        return
    if do == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
        return
    if do == "unreadable":
        file.chmod(0)
        return
    if do == "huge":  # a hole: no disk is used
        os.truncate(file, 40 * 2**30)
        return
    if do == "link":
        target = file.with_name(f"{file.name}.target")
        shutil.move(file, target)
        file.symlink_to(target.name)
        return
    file.unlink()
    if do == "folder":
        file.mkdir()
    elif do == "fifo":
        os.mkfifo(file)
    elif do == "loop":
        file.symlink_to(file.name)
