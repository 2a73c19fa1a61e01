"""A stage as a step: what its result depends on, and how it is run, by one process or by several under a launcher.

    identity: kind, version, knobs that are not at their defaults, the parent's key, digests of what is read, seed,
              versions of the libraries that compute; the machine, where decode steps are timed

A default that changes gives other results for the same identity, so it raises the stage's version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.digests import digest_of
from compress.stage import FormatName, Stage, StageConfig, StageInput, StageInputName, StageMetadata
from compress.text import TextSource
from evaluation.machine import available_cores
from recipes.engine.launcher import Launcher
from recipes.engine.model_source import digest_folder
from recipes.engine.steps import Engine, Step
from recipes.measure.decode_timer import DecodeTimer
from recipes.runs.environment import processor
from recipes.runs.records import Artifact
from recipes.runs.store import versions

TEACHES: frozenset[FormatName] = frozenset({"dense"})
"""Formats that a stage can learn from."""
RUNTIME = ("mobius-onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class StageStep:
    """A stage in its place, with the identity of what it will leave."""

    index: int
    name: str
    """Unique among the stages of a recipe: "prune", "prune 2"."""
    stage: Stage[Any]
    config: StageConfig
    texts: Mapping[StageInputName, TextSource | None]
    seed: int
    lineage: tuple[StageMetadata, ...]
    """What came before it; all of it is in the key of its parent already."""
    identity: Mapping[str, Any]

    @property
    def key(self) -> str:
        return digest_of(self.identity)


def stage_step(
    stage: Stage[Any],
    config: StageConfig,
    *,
    parent: str,
    teacher: str | None,
    texts: Mapping[StageInputName, TextSource | None],
    seed: int,
    lineage: tuple[StageMetadata, ...],
    index: int = 0,
    name: str = "",
    threads: int | None = None,
) -> StageStep:
    """A stage on what has the key `parent`, with a teacher of this key; decoding is timed with so many `threads`."""
    digests: dict[str, str | None] = {}
    for material in sorted(stage.inputs_read(config)):
        text = texts.get(material)
        digests[material] = teacher if material == "teacher" else None if text is None else text.digest()
    digests |= {knob: digest_folder(folder) for knob, folder in stage.folders(config).items()}
    identity = {
        "kind": stage.kind,
        "version": stage.version,
        "knobs": config.model_dump(mode="json", exclude_defaults=True),
        "parent": parent,
        "inputs_read": digests,
        "seed": seed,
        "libraries": versions(stage.libraries),
    }
    if stage.times_decoding(config):
        machine = {"processor": processor(), "cores": available_cores(), "threads": threads}
        identity["machine"] = machine | versions(RUNTIME)
    return StageStep(
        index=index,
        name=name or stage.kind,
        stage=stage,
        config=config,
        texts=texts,
        seed=seed,
        lineage=lineage,
        identity=identity,
    )


def obtain_stage(
    engine: Engine,
    step: StageStep,
    *,
    source: Path | None,
    teacher: Path | None,
    logs: Path,
    threads: int | None = None,
    launcher: Launcher | None = None,
) -> Artifact:
    """What the stage leaves: made, or found.

    Args:
        teacher: a checkpoint that it may learn from.
        logs: where curves are written while it trains.
        threads: with which a decode step is timed, where the knobs ask for that.

    Raises:
        StageError: the stage refuses.
        LauncherError: a process of several failed.
    """

    def make(files: Path, scratch: Path) -> dict[str, Any]:
        given = StageInput(
            source=source,
            out=files,
            scratch=scratch,
            seed=step.seed,
            teacher=teacher,
            train_text=step.texts.get("train_text"),
            calibration_text=step.texts.get("calibration_text"),
            decode_seconds=DecodeTimer(scratch, threads=threads),
            logs=logs,
            lineage=step.lineage,
            progress=engine.progress,
        )
        if launcher is None or not step.stage.parallel:
            return step.stage.run(step.config, given)
        return launcher.run(step.stage, step.config, given)

    return engine.obtain(Step(kind=step.stage.kind, identity=step.identity, make=make, of=step.name))
