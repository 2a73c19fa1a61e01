"""YAML 1.2 as plain values: mappings with keys of text, lists, texts, numbers, truth and null; what else is refused.

A text of a few lines can stand for more than fits into memory: an alias stands for its anchor's whole value, a merge
key for all keys of its mapping, and either again inside of the next. So what the tree comes to with every alias
written out is counted first, and only then are values made.

Not covered: tags of one's own, which are refused; what the values mean.
"""

import json
import math
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from compress.stage import first_line

LARGEST = 2**20
"""Bytes of a file."""
DEEPEST = 32
"""Levels of lists and mappings in each other."""
TOO_DEEP = f"expected at most {DEEPEST} levels of lists and mappings in each other, got more"
MOST = 20_000
"""Keys and values, with every alias written out."""


class YamlError(ValueError):
    """A text is no YAML that can be used; the message says what was expected and what came."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(" ".join(text.split()))
        self.line = line
        """Counted from 1; 0: not known."""


def parse_yaml(text: str) -> tuple[Node, Any]:
    """The tree of a text, with its lines; and its value, in which the first of a repeated key counts.

    Raises:
        YamlError: it is no YAML, or stands for too much.
    """
    loader = YAML(typ="safe", pure=True)
    loader.allow_duplicate_keys = True  # who reads a recipe reports them with all its other errors
    try:
        tree = loader.compose(text)
        _check_amount(tree)
        value = None if tree is None else loader.constructor.construct_document(tree)
        value = json.loads(json.dumps(value, default=_plain))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise YamlError(f"no valid YAML: {error.problem or error.context}", line) from error
    except RecursionError:
        raise YamlError(TOO_DEEP) from None
    except YamlError:
        raise
    except Exception as error:  # a value that its tag does not fit is a KeyError, an IndexError, an AttributeError
        raise YamlError(f"no valid YAML: {first_line(error)}") from error
    _check_text(value)
    return tree, value


def _plain(value: object) -> str:
    """A date as text; json asks only for what it does not know."""
    if isinstance(value, bytes | set):
        raise YamlError("expected texts, numbers, lists and mappings, got a tag such as !!binary or !!set")
    return str(value)


def _check_amount(tree: Node | None) -> None:
    amounts: dict[int, float] = {}

    def amount(node: Node, level: int) -> float:
        if id(node) not in amounts:
            if isinstance(node, CollectionNode) and level >= DEEPEST:
                raise YamlError(TOO_DEEP, node.start_mark.line + 1)
            amounts[id(node)] = math.inf  # until it is known: an anchor that holds its own alias never ends
            parts = node.value if isinstance(node, CollectionNode) else ()
            inner = [part for pair in parts for part in pair] if isinstance(node, MappingNode) else parts
            amounts[id(node)] = 1 + sum(amount(part, level + 1) for part in inner)
        return amounts[id(node)]

    if tree is not None and amount(tree, 0) > MOST:
        raise YamlError(f"expected at most {MOST:,} keys and values with every alias written out, got more")


def _check_text(value: Any) -> None:
    """Every text can be written in UTF-8, and can be a part of a path."""
    told = json.dumps(value, ensure_ascii=False)
    try:
        told.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise YamlError(f"expected text, got half of a surrogate pair (\\u{half:04x})") from error
    if "\\u0000" in told:
        raise YamlError("expected text, got a zero byte (\\0)")
