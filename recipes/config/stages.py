"""Every stage that a recipe may name, by its YAML key: ours, and those of installed packages."""

from collections.abc import Mapping
from typing import Any

from compress import STAGES as COMPRESSION
from compress import Stage
from compress.extensions import Extended
from export import EXPORT

GROUP = "demitasse.stages"
"""The entry points of other packages' stages: the name is the stage's kind, the object a `compress.Stage`."""
STAGES: Mapping[str, Stage[Any]] = Extended({**COMPRESSION, EXPORT.kind: EXPORT}, group=GROUP, kind=Stage)
