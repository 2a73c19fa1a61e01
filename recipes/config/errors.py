"""How an error of a recipe reads: where it stands, what was expected, what came, and what was perhaps meant.

    recipes/x.yaml:9: prune.sparsity: expected at most 1, got 3
    --set data.test=a.txt: expected an existing file, got 'a.txt'

A key path inside the file is a tuple such as ("stages", 1, "prune", "sparsity"); it is shown as `prune.sparsity`, or
as `stages.2.sparsity` (counted from 1) where the recipe has several stages of that kind. What is shown is also what
`--set` takes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import DemitasseError
from compress.names import did_you_mean as did_you_mean

KeyPath = tuple[str | int, ...]
LONGEST = 1000
"""Characters of an error that are shown."""
_ARTICLES = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "missing": "a value",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


class RecipeError(DemitasseError):
    """Everything that is wrong with a recipe, one line per error."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = tuple(map(_one_line, errors))
        super().__init__("\n".join(self.errors))


def _one_line(text: str) -> str:
    """A line break is shown as a blank, and the middle of what is too long left out."""
    line = " ".join(text.splitlines())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"


@dataclass(frozen=True, order=True)
class Problem:
    """One error with the line it stands on (0: no line), so that errors come in the order of the file."""

    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Locations:
    """Where every key of a recipe was given: in the file or with `--set`."""

    file: str = "recipe"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> the override that set it, such as "data.test=a.txt"."""
    kinds: tuple[str, ...] = ()
    """The kind of each stage."""

    def show(self, path: KeyPath) -> str:
        """The key path as people write it."""
        index = path[1] if len(path) > 1 and path[0] == "stages" else None
        if isinstance(index, int) and index < len(self.kinds):
            kind = self.kinds[index]
            head = kind if self.kinds.count(kind) == 1 else f"stages.{index + 1}"
            return ".".join([head, *map(str, path[3:])])
        return ".".join(map(str, path))

    def override(self, path: KeyPath) -> str | None:
        """The override that gave the value at `path`, or None where the file gave it."""
        found = [text for prefix, text in self.overrides.items() if path[: len(prefix)] == prefix]
        return found[-1] if found else None

    def problem(self, path: KeyPath, text: str) -> Problem:
        """An error about the value at `path`."""
        shown = self.show(path)
        override = self.override(path)
        if override is not None:
            name = override.partition("=")[0]
            return Problem(0, f"--set {override}: {text}" if name == shown else f"--set {override}: {shown}: {text}")
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        place = self.file if line is None else f"{self.file}:{line}"
        return Problem(line or 0, f"{place}: {shown}: {text}" if shown else f"{place}: {text}")


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise all of them as one RecipeError, in the order of the file and each once; nothing where there are none."""
    found = list(dict.fromkeys(problem.text for problem in sorted(problems, key=lambda problem: problem.line)))
    if found:
        raise RecipeError(found)


def shown_path(path: Path) -> str:
    """A path as short as it can be: from the working directory where it lies below that."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def one_of(choices: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def got(value: object) -> str:
    """A short picture of a value."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a mapping ({', '.join(map(str, value)) or 'empty'})"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_key(key: object, known: Iterable[str]) -> str:
    """The text of an error about a key that nothing reads."""
    names = sorted(set(known))
    return f"expected {one_of(names)}, got the unknown key {str(key)!r}{did_you_mean(key, names)}"


def describe(error: Mapping[str, Any], known: Iterable[str]) -> str:
    """The text of one of pydantic's errors; `known` are the keys of the mapping that it stands in."""
    kind, value, context = str(error["type"]), error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(error["loc"][-1], known)
    if kind == "value_error":
        return _own_words(str(context["error"]), value)
    if kind == "missing":
        value = None
    return f"expected {_expected(kind, context, str(error['msg']))}, got {got(value)}{_meant(kind, context, value)}"


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {context[key]:g}" if isinstance(context[key], float) else f"{words} {context[key]}"
    if kind in {"literal_error", "enum"}:
        return str(context["expected"])
    if kind in {"too_short", "too_long"}:
        return message.partition(" after validation")[0].partition("should have ")[2]
    return _ARTICLES.get(kind) or re.sub(r"^Input should be (a valid )?", "", message)


def _meant(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind not in {"literal_error", "enum"}:
        return ""
    return did_you_mean(value, re.findall(r"'([^']*)'", str(context["expected"])))


def _own_words(message: str, value: object) -> str:
    """An error that a config raised itself, completed with what came where it does not say so."""
    return message if "got " in message or isinstance(value, Mapping) else f"{message}, got {got(value)}"
