"""The files and folders that a recipe names, found: absolute paths, or an error for each that is not there.

Relative paths count from the recipe's folder, those of an override from the working directory. Whether something is
there is asked of os.path, for which a name that is too long is not there; to pathlib that is an error.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from compress.text import TextSource
from recipes.config.errors import KeyPath
from recipes.config.evaluations import name_problems
from recipes.config.recipe import DataConfig, EvaluateConfig, ModelSource, NoiseConfig, PlannedStage, Stages
from recipes.config.yaml_document import RawConfig

NAMED_SECTIONS = ("tasks", "labeled", "generation")
"""The keys of `evaluate` that name evaluations."""
_Model = TypeVar("_Model", bound=BaseModel)


def _absolute(raw: RawConfig, path: KeyPath, file: Path, folder: Path) -> Path:
    """A path of the recipe from its folder, of an override from the working directory."""
    base = folder if raw.where.override(path) is None else Path.cwd()
    try:
        return Path(os.path.normpath(base.absolute() / file.expanduser()))
    except RuntimeError:  # `~nosuch`: a file may be called so, and what is not there is refused like any other
        return Path(os.path.normpath(base.absolute() / file))


def resolve_folders(
    raw: RawConfig, planned: Sequence[PlannedStage | None], stages: Stages, folder: Path
) -> list[PlannedStage | None]:
    """The stages with the checkpoints that their knobs name found."""
    return [
        planned_stage and _resolved(raw, ("stages", index, planned_stage.kind), planned_stage, stages, folder)
        for index, planned_stage in enumerate(planned)
    ]


def _resolved(raw: RawConfig, path: KeyPath, planned: PlannedStage, stages: Stages, folder: Path) -> PlannedStage:
    found = {
        knob: _absolute(raw, (*path, knob), named, folder)
        for knob, named in stages[planned.kind].folders(planned.config).items()
    }
    for knob, place in found.items():
        if not os.path.isdir(place):
            raw.refuse((*path, knob), f"expected an existing checkpoint folder, got {str(place)!r}")
    return planned.model_copy(update={"config": planned.config.model_copy(update=found)})


def resolve_model(raw: RawConfig, model: ModelSource | None, folder: Path) -> ModelSource | None:
    """The model with its folder found."""
    if model is None or model.folder is None:
        return model
    resolved = _absolute(raw, ("model",), model.folder, folder)
    if not os.path.isdir(resolved):
        written = str(model.folder)
        way = (
            f"; a model of the hub is written {{hub: {written}, revision: <commit hash>}}"
            if written.count("/") == 1
            else ""
        )
        problem = "expected a folder" if os.path.exists(resolved) else "expected an existing folder"
        raw.refuse(("model",), f"{problem}, got {written!r}{way}")
    return model.model_copy(update={"folder": resolved})


def texts_exist(raw: RawConfig, folder: Path) -> None:
    """Refuse every text whose file is not there."""
    texts = raw.content.get("data")
    if not isinstance(texts, dict):
        return
    for key in DataConfig.model_fields:
        value = texts.get(key)
        file = value.get("file") if isinstance(value, dict) else value
        if isinstance(file, str) and not os.path.isfile(_absolute(raw, ("data", key), Path(file), folder)):
            raw.refuse(("data", key), f"expected an existing file, got {file!r}")


def resolve_evaluations(raw: RawConfig, evaluate: EvaluateConfig | None, folder: Path) -> EvaluateConfig | None:
    """The named evaluations with their files found, and their names looked at."""
    if evaluate is None:
        return None
    resolved: dict[str, Any] = {}
    places: list[KeyPath] = []
    for section in NAMED_SECTIONS:
        configs = []
        for index, config in enumerate(getattr(evaluate, section)):
            place: KeyPath = ("evaluate", section, index)
            places.append(place)
            configs.append(_with_files(raw, place, config, folder))
        resolved[section] = tuple(configs)
    names = [config.name for config in evaluate.named]
    for place, problem in zip(places, name_problems(names, list(NoiseConfig.model_fields)), strict=True):
        if problem:
            raw.refuse((*place, "name"), problem)
    return evaluate.model_copy(update=resolved)


def _with_files(raw: RawConfig, place: KeyPath, config: _Model, folder: Path) -> _Model:
    """A config whose paths are absolute; what is not there is refused."""
    found = {}
    for key, value in config:
        if isinstance(value, Path):
            found[key] = _absolute(raw, (*place, key), value, folder)
            if not os.path.exists(found[key]):
                raw.refuse((*place, key), f"expected an existing file, got {str(value)!r}")
    return config.model_copy(update=found)


def resolve_texts(raw: RawConfig, data: DataConfig | None, folder: Path) -> DataConfig | None:
    """The texts with their files found."""
    if data is None:
        return None
    resolved: dict[str, TextSource] = {}
    for key in DataConfig.model_fields:
        source: TextSource | None = getattr(data, key)
        if source is not None and source.file is not None:
            file = _absolute(raw, ("data", key), source.file, folder)
            resolved[key] = source.model_copy(update={"file": file})
    return data.model_copy(update=resolved)
