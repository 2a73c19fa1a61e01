"""What identifies a thing: sha256, in hexadecimal, of a file's bytes or of a value's one JSON text.

A sealed text is the JSON of an object with one entry more, `seal`: the sha256 of its text without that entry. There is
one such text of a value, so any other byte is found, whatever it stands for. A seal tells of damage and of an edit by
hand; who means to deceive can seal again.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoints.json_file import open_plain, parse_json, read_plain

SEALED_LIMIT = 2**27
"""Bytes of a sealed text; none that was ever written comes near."""


def digest_file(file: Path) -> str:
    """sha256 of a plain file's bytes, which are read piece by piece.

    Raises:
        OSError: it is missing or something else.
    """
    with open(file, "rb", opener=open_plain) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def seed_of(key: str) -> int:
    """The seed of the random numbers of a key: the same on every machine, another for every text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


SEAL = "seal"


def sealed(content: Mapping[str, Any]) -> str:
    """The sealed text of an object of JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(content))  # keys are texts from here on, and sorted as such
    seal = hashlib.sha256(_indented(plain).encode()).hexdigest()
    return _indented(plain | {SEAL: seal})


def read_sealed(file: Path) -> dict[str, Any]:
    """The object that was sealed, from a plain file.

    Raises:
        ValueError: there is none that can be read, or it is not the text that was sealed.
    """
    return unsealed(read_plain(file, SEALED_LIMIT))


def unsealed(text: bytes) -> dict[str, Any]:
    """The object that was sealed.

    Raises:
        ValueError: this is not the text that was sealed.
    """
    content = parse_json(text, "its text")
    if not isinstance(content, dict):
        raise ValueError("expected an object of JSON")
    seal = content.pop(SEAL, None)
    if sealed(content).encode() != text:
        raise ValueError("its seal does not hold" if seal is not None else "it has no seal")
    return content


def _indented(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
