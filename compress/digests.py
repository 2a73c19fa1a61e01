"""What identifies a thing: sha256, in hexadecimal, of a file's bytes or of a value's one JSON text."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_file(file: Path) -> str:
    """sha256 of a file's bytes, which are read piece by piece."""
    with file.open("rb") as stream:
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
