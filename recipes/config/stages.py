"""Every stage that a recipe may name, by its YAML key."""

from typing import Any

from compress import STAGES as COMPRESSION
from compress import Stage
from export import EXPORT

STAGES: dict[str, Stage[Any]] = {**COMPRESSION, EXPORT.kind: EXPORT}
