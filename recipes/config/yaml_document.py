"""A recipe file as plain values, with the line of every key, and with the overrides of the command line put in.

Nothing is known here of what a recipe may hold, except that stages come as a list and that a model or a text may be
written as one word. Repeated keys are collected, not raised, so that they come in one message with everything else.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from compress.checkpoints.json_file import PlainFileError, read_plain
from recipes.config.errors import KeyPath, Locations, Problem, RecipeError, got, shown_path, unknown_key
from recipes.config.yaml_text import LARGEST, YamlError, parse_yaml

SECTIONS = ("model", "data", "stages", "evaluate", "benchmark", "gate", "seed", "launcher")


@dataclass
class RawConfig:
    """A recipe while it is being checked: what was read, where it stood, what is wrong with it."""

    content: dict[str, Any]
    where: Locations
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, path: KeyPath, text: str) -> None:
        self.problems.append(self.where.problem(path, text))

    @property
    def items(self) -> list[tuple[str, Any]]:
        """(kind, knobs) of every stage."""
        return [next(iter(item.items())) for item in self.content.get("stages") or ()]


def read(file: Path) -> RawConfig:
    """Read a recipe file.

    Raises:
        RecipeError: it is no YAML mapping.
    """
    shown = shown_path(file)
    try:
        text = read_plain(file, LARGEST).decode("utf-8")
        tree, content = parse_yaml(text)
    except UnicodeDecodeError as error:
        raise RecipeError([f"{shown}: expected a YAML text in UTF-8, got binary data at byte {error.start}"]) from error
    except PlainFileError as error:
        raise RecipeError([f"{shown}: {error}"]) from error
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise RecipeError([f"{shown}{line}: {error}"]) from error
    if not isinstance(content, dict):
        raise RecipeError([f"{shown}:1: expected a mapping with {', '.join(SECTIONS)}, got {got(content)}"])
    lines: dict[KeyPath, int] = {}
    repeated = list(_walk(tree, (), lines))
    raw = RawConfig(content, Locations(file=shown, lines=lines))
    _normalize_stages(raw)
    for key, number, first in repeated:
        text = f"{raw.where.show(key)}: expected each key once, got it again (first in line {first})"
        raw.problems.append(Problem(number, f"{shown}:{number}: {text}"))
    return raw


def _walk(node: Node, path: KeyPath, lines: dict[KeyPath, int]) -> Iterator[tuple[KeyPath, int, int]]:
    """Note the line of every key and item; gives (path, line, first line) of each key that is repeated."""
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
    elif isinstance(node, MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            inner, line = (*path, key.value), key.start_mark.line + 1
            if key.value in seen:
                yield inner, line, seen[key.value]
            seen.setdefault(key.value, line)
            lines.setdefault(inner, line)
            yield from _walk(value, inner, lines)


def _normalize_stages(raw: RawConfig) -> None:
    """`- export` and `- export:` become `- export: {}`; an item that is no stage at all is refused and left out."""
    items = raw.content.get("stages")
    if items is None:
        return
    if not isinstance(items, list):
        raw.refuse(("stages",), f"expected a list of stages, got {got(items)}")
        items = []
    normal: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        if isinstance(item, str):
            normal.append({item: {}})
        elif isinstance(item, dict) and len(item) == 1:
            normal.append({kind: {} if knobs is None else knobs for kind, knobs in item.items()})
        else:
            normal.append({"?": {}})
            raw.refuse(
                ("stages", index),
                f"expected one stage with its knobs, such as `prune: {{sparsity: 0.3}}`, got {got(item)}",
            )
    raw.content["stages"] = normal
    raw.where = replace(raw.where, kinds=tuple(kind for kind, _ in raw.items))


Overrides = Mapping[str, Any] | Sequence[str]
"""Key -> value, or "key=value" as on the command line."""


def plain(value: Any, name: str) -> Any:
    """A value that somebody made in Python, as JSON has it: paths become texts, configs become mappings.

    Raises:
        RecipeError: it holds what has no such form.
    """

    def known(inner: Any) -> Any:
        if isinstance(inner, BaseModel):
            return inner.model_dump(mode="json", exclude_unset=True)
        if isinstance(inner, PurePath):
            return str(inner)
        if isinstance(inner, Mapping):
            return dict(inner)
        raise TypeError(f"expected texts, numbers, lists and mappings, got {got(inner)}")

    try:
        return json.loads(json.dumps(value, default=known))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError([f"{name}: {error}"]) from error


def draft_of(content: dict[str, Any], name: str) -> RawConfig:
    """A raw of values that came from no file; errors name `name` in its place."""
    raw = RawConfig(content, Locations(file=name))
    _normalize_stages(raw)
    return raw


def as_yaml(content: dict[str, Any]) -> str:
    """Plain values as the text of a recipe file."""
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(content, stream)
    return stream.getvalue()


def override_all(raw: RawConfig, given: Overrides) -> None:
    """Set keys as the caller or the command line asks for."""
    if isinstance(given, str):
        raise RecipeError([f"overrides: expected a mapping or a list of key=value, got {got(given)}"])
    if not isinstance(given, Mapping):
        for text in given:
            override(raw, text)
        return
    for name, value in given.items():
        value = plain(value, f"overrides: {name}")
        _set_at(raw, name, value, f"{name}={value if isinstance(value, str) else json.dumps(value)}")


def override(raw: RawConfig, given: str) -> None:
    """Set one key from the command line."""
    name, equals, text = given.partition("=")
    if not equals or not name:
        raw.problems.append(Problem(0, f"--set {given}: expected key=value, such as data.test=my.txt"))
        return
    try:
        _, value = parse_yaml(text)
    except YamlError as error:
        raw.problems.append(Problem(0, f"--set {given}: {error}"))
        return
    _set_at(raw, name, value, given)


def _set_at(raw: RawConfig, name: str, value: Any, given: str) -> None:
    path = _address(raw, str(name).split("."), given)
    if path is not None:
        _set(raw, path, value, given)


def _address(raw: RawConfig, parts: list[str], given: str) -> KeyPath | None:
    """The key path that an override names."""
    kinds = raw.where.kinds
    head = parts[0]

    def refuse(text: str) -> None:
        raw.problems.append(Problem(0, f"--set {given}: {text}"))

    if head in kinds and kinds.count(head) == 1:
        index = kinds.index(head)
        return ("stages", index, head, *parts[1:])
    if head in kinds:
        numbers = [f"stages.{index + 1}" for index, kind in enumerate(kinds) if kind == head]
        refuse(f"expected one of {', '.join(numbers)}, got {head!r}, of which there are several")
        return None
    if head == "stages" and len(parts) > 1:
        if parts[1].isdecimal() and 1 <= int(parts[1]) <= len(kinds):
            index = int(parts[1]) - 1
            return ("stages", index, kinds[index], *parts[2:])
        refuse(f"expected a stage's number from 1 to {len(kinds)}, got {parts[1]!r}")
        return None
    if head not in SECTIONS:
        refuse(unknown_key(head, [*SECTIONS, *kinds]))
        return None
    return tuple(parts)


def _set(raw: RawConfig, path: KeyPath, value: Any, given: str) -> None:
    target: Any = raw.content
    keys: list[str | int] = []
    for name in path[:-1]:
        key = _key(raw, target, name, keys, given)
        if key is None:
            return
        target = _inside(target, key, keys)
        keys.append(key)
    last = _key(raw, target, path[-1], keys, given)
    if last is None:
        return
    if value is None and isinstance(target, dict) and (len(keys), *keys[:1]) != (2, "stages"):
        target.pop(last, None)
    else:  # a stage without knobs is one with its defaults, as in the file
        target[last] = value
    raw.where = replace(raw.where, overrides={**raw.where.overrides, (*keys, last): given})
    if path[0] == "stages" and len(path) <= 3:
        _normalize_stages(raw)


def _key(raw: RawConfig, target: Any, name: str | int, above: list[str | int], given: str) -> str | int | None:
    """The key that a part of an override means in `target`, a list's as a number; None where that is refused."""
    if isinstance(target, dict):
        return name
    shown = raw.where.show(tuple(above))
    if isinstance(target, list):
        number = int(name) if str(name).isascii() and str(name).isdecimal() else len(target)
        if number < len(target):
            return number
        text = f"expected the number of an item of {shown}, of which there are {len(target)} from 0 on, got {name!r}"
    else:
        text = f"expected {shown} to be a mapping, got {got(target)}"
    raw.problems.append(Problem(0, f"--set {given}: {text}"))
    return None


def _inside(target: Any, key: str | int, above: list[str | int]) -> Any:
    """What stands under `key`, made where there is nothing; a model or a text in its short form becomes a mapping."""
    inner = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    if isinstance(inner, str) and above in ([], ["data"]):
        inner = target[key] = {"folder" if key == "model" else "file": inner}
    return inner
