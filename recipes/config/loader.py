"""A recipe file becomes a Recipe, or one error that lists everything that is wrong with it.

    YAML 1.2  --read-->  plain values + line of every key  --overrides-->  --check each section-->  Recipe

Checked here is what the file and a look at the disk can tell: spelling, types, bounds, repeated keys, the order of the
stages, the inputs they need, gates that nothing would measure, files that are not there. What needs the contents of
model and texts is in `preflight.py`. Relative paths count from the recipe's folder, those of an override from the
working directory.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evaluation.gate import Limit, limit_problem
from evaluation.measurement import METRICS, SEPARATOR, is_metric, metric_of
from recipes.config.errors import KeyPath, RecipeError, describe, did_you_mean, got, one_of, raise_problems, unknown_key
from recipes.config.metrics import register_metrics
from recipes.config.paths import resolve_evaluations, resolve_folders, resolve_model, resolve_texts, texts_exist
from recipes.config.recipe import (
    BenchmarkConfig,
    DataConfig,
    EvaluateConfig,
    ModelSource,
    PlannedStage,
    Recipe,
    Stages,
)
from recipes.config.yaml_document import SECTIONS, Overrides, RawConfig, as_yaml, draft_of, override_all, plain, read

SHIPPED = Path(__file__).parent.parent
TEXTS = {"train_text": "train", "calibration_text": "calibration"}
"""StageInputName -> the key of `data` that gives it."""
_Model = TypeVar("_Model", bound=BaseModel)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with demitasse, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def load_recipe(path: str | Path, overrides: Overrides = (), *, stages: Stages | None = None) -> Recipe:
    """Load and check a recipe: a path, or the name of a shipped one.

    `overrides` change keys: a mapping such as {"data.test": Path("a.txt"), "prune.sparsity": 0.5, "stages.2.layers": 4}
    (counted from 1), or texts as on the command line such as "prune.sparsity=0.5", whose values are YAML. None takes a
    key away. `stages` are the kinds that the recipe may name (default: all).

    Raises:
        RecipeError: everything that is wrong, one line each.
    """
    file = _find(path)
    recipe = _checked(read(file), overrides, stages, name=file.stem, folder=file.parent)
    return recipe.model_copy(update={"path": file.absolute()})


def recipe_of(
    content: Mapping[str, Any],
    *,
    name: str = "recipe",
    folder: str | Path | None = None,
    overrides: Overrides = (),
    stages: Stages | None = None,
) -> Recipe:
    """See `Recipe.from_dict`, which is this."""
    values = plain(content, name)
    if not isinstance(values, dict):
        raise RecipeError([f"{name}: expected a mapping with {', '.join(SECTIONS)}, got {got(content)}"])
    recipe = _checked(draft_of(values, name), overrides, stages, name=name, folder=Path(folder or ""))
    return recipe.model_copy(update={"text": as_yaml(values)})


def config_of(config: type[_Model], given: _Model | Mapping[str, Any] | None, name: str) -> _Model:
    """A config that a caller gave: as it is, by its knobs, or None for its defaults.

    Raises:
        RecipeError: every knob that is wrong, one line each.
    """
    if isinstance(given, config):
        return given
    raw = draft_of({}, name)
    found = _parse(raw, (), plain({} if given is None else given, name), config)
    raise_problems(raw.problems)
    assert found is not None  # what is wrong is a problem, raised above
    return found


def load_gates(given: str | Path | Mapping[str, Any]) -> dict[str, Limit]:
    """The gates of a recipe, of a file with nothing but `gate`, whose other keys are not looked at, or of a mapping.

    Raises:
        RecipeError: everything that is wrong with the gates, or there are none.
    """
    register_metrics()
    raw = draft_of({"gate": plain(given, "gates")}, "gates") if isinstance(given, Mapping) else read(_find(given))
    gates = _gate(raw, timed=True, named=None)
    if not gates and not raw.problems:
        raw.refuse(("gate",), "expected at least one gate, such as {perplexity: {max_ratio: 1.1}}, got none")
    raise_problems(raw.problems)
    return gates


def _find(path: str | Path) -> Path:
    file = Path(path)
    if os.path.isfile(file):
        return file
    shipped = shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    names = ", ".join(shipped) or "none"
    raise RecipeError(
        [f"{path}: expected a recipe file or the name of a shipped recipe ({names}){did_you_mean(path, shipped)}"]
    )


def _checked(raw: RawConfig, overrides: Overrides, stages: Stages | None, *, name: str, folder: Path) -> Recipe:
    if stages is None:
        from recipes.config.stages import STAGES

        stages = STAGES
    register_metrics()
    override_all(raw, overrides)
    return _check(raw, stages, name=name, folder=folder)


def _check(raw: RawConfig, stages: Stages, *, name: str, folder: Path) -> Recipe:
    """The recipe of a raw whose relative paths count from a folder."""
    for key in raw.content:
        if key not in SECTIONS:
            raw.refuse((key,), unknown_key(key, SECTIONS))
    content = raw.content
    model = _section(raw, "model", ModelSource) if content.get("model") is not None else None
    data = _section(raw, "data", DataConfig)
    planned = resolve_folders(raw, _stages(raw, stages), stages, folder)
    evaluate = _section(raw, "evaluate", EvaluateConfig) if content.get("evaluate") is not None else EvaluateConfig()
    benchmark = _section(raw, "benchmark", BenchmarkConfig) if content.get("benchmark") is not None else None
    evaluate = resolve_evaluations(raw, evaluate, folder)
    gate = _gate(raw, timed=content.get("benchmark") is not None, named=prefixes(evaluate) if evaluate else None)
    seed, launcher = _seed(raw), _launcher(raw)
    _chain(raw, planned, stages)
    texts_exist(raw, folder)
    model = resolve_model(raw, model, folder)
    data = resolve_texts(raw, data, folder)
    raise_problems(raw.problems)
    assert data is not None  # what is missing is a problem, raised above
    assert evaluate is not None
    return Recipe(
        name=name,
        model=model,
        data=data,
        stages=tuple(stage for stage in planned if stage),
        evaluate=evaluate,
        benchmark=benchmark,
        gate=gate,
        seed=seed,
        launcher=launcher,
        where=raw.where,
    )


def _section(raw: RawConfig, key: str, model: type[_Model]) -> _Model | None:
    if raw.content.get(key) is None:
        raw.refuse((key,), f"expected a mapping with {', '.join(model.model_fields)}, got nothing")
        return None
    return _parse(raw, (key,), raw.content[key], model)


def _parse(raw: RawConfig, path: KeyPath, value: Any, model: type[_Model]) -> _Model | None:
    """A value as a config; strict: "5" is no number, and 1 is not true."""
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        texts: dict[KeyPath, list[str]] = {}
        for found in error.errors(include_url=False):
            inner, holder = _place(value, found["loc"])
            texts.setdefault((*path, *inner), []).append(describe(found, _known(model, holder)))
        for place, options in texts.items():
            raw.refuse(place, options[0] if len(options) == 1 else _either(options))
        return None


def _either(options: list[str]) -> str:
    """What a union of types says, each of its members in turn, in one sentence."""
    expected = [option.removeprefix("expected ").partition(", got ") for option in options]
    return f"expected {' or '.join(dict.fromkeys(words for words, _, _ in expected))}, got {expected[0][2]}"


def _place(value: Any, location: Sequence[str | int]) -> tuple[KeyPath, KeyPath]:
    """pydantic's location without the names of union members; and the path of the mapping that holds it."""
    path: list[str | int] = []
    for index, key in enumerate(location):
        inside = (isinstance(value, dict) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        )
        if inside:
            value = value[key]
            path.append(key)
        elif index == len(location) - 1 and isinstance(value, dict):
            path.append(key)
    return tuple(path), tuple(path[:-1])


def _known(model: type[BaseModel], holder: KeyPath) -> list[str]:
    """The keys of the config at `holder` inside of `model`."""
    for key in holder:
        annotation = model.model_fields[key].annotation if isinstance(key, str) and key in model.model_fields else None
        members = [annotation, *getattr(annotation, "__args__", ())]
        inner = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        if inner:
            model = inner[0]
    return list(model.model_fields)


def _stages(raw: RawConfig, stages: Stages) -> list[PlannedStage | None]:
    if raw.content.get("stages") is None:
        raw.refuse(("stages",), f"expected a list of stages ({', '.join(stages)}), got nothing")
        return []
    planned: list[PlannedStage | None] = []
    for index, (kind, knobs) in enumerate(raw.items):
        config = None
        if kind in stages:
            config = _parse(raw, ("stages", index, kind), knobs, stages[kind].config)
        elif kind != "?":
            problem = f"expected a stage ({', '.join(stages)}), got {kind!r}{did_you_mean(kind, stages)}"
            raw.problems.append(raw.where.problem(("stages", index, kind), problem))
        planned.append(PlannedStage(kind=kind, config=config) if config is not None else None)
    return planned


def _gate(raw: RawConfig, *, timed: bool, named: Sequence[str] | None) -> dict[str, Limit]:
    """The limits of every gate.

    Args:
        timed: whether something measures latency.
        named: what may stand before a metric; None: that is not known.
    """
    gates = raw.content.get("gate") or {}
    if not isinstance(gates, Mapping):
        raw.refuse(("gate",), f"expected a mapping such as {{perplexity: {{max_ratio: 1.1}}}}, got {got(gates)}")
        return {}
    limits: dict[str, Limit] = {}
    for metric, value in gates.items():
        problem = _metric_problem(metric, named)
        if problem:
            raw.refuse(("gate", metric), problem)
            continue
        limit = _parse(raw, ("gate", metric), value, Limit)
        if limit is not None:
            limits[metric] = limit
            problem = limit_problem(metric, limit)
            if problem:
                raw.refuse(("gate", metric), problem)
        if metric_of(metric).more == "blocks" and not timed:
            raw.refuse(("gate", metric), "expected a `benchmark` section that measures it, got none")
    return limits


def _metric_problem(metric: str, named: Sequence[str] | None) -> str:
    """Why nothing would measure this metric, or empty."""
    of, _, last = metric.rpartition(SEPARATOR)
    if not of:
        if metric in METRICS and METRICS[metric].named:
            way = f"such as {named[0]}{SEPARATOR}{metric}" if named else "such as hellaswag/accuracy"
            return f"expected the name of an evaluation before it, {way}, got {metric!r}"
        return "" if is_metric(metric) else unknown_key(metric, [name for name in METRICS if not METRICS[name].named])
    if not is_metric(metric):
        return unknown_key(last, [name for name in METRICS if is_metric(f"{of}{SEPARATOR}{name}")])
    if named is not None and of not in named:
        there = one_of(named) if named else "none, since `evaluate` names none"
        return f"expected a noise or an evaluation that `evaluate` names ({there}), got {of!r}{did_you_mean(of, named)}"
    return ""


def prefixes(evaluate: EvaluateConfig) -> list[str]:
    """What may stand before a metric: the noises and the names of evaluations that are asked for."""
    return [*evaluate.noises, *(config.name for config in evaluate.named)]


def _seed(raw: RawConfig) -> int:
    seed = raw.content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raw.refuse(("seed",), f"expected an integer from 0 to 4294967295, got {got(seed)}")
        return 0
    return seed


def _launcher(raw: RawConfig) -> str | None:
    launcher = raw.content.get("launcher")
    if launcher is not None and (not isinstance(launcher, str) or not launcher.strip()):
        raw.refuse(("launcher",), f'expected a command such as "torchrun --nproc-per-node 4", got {got(launcher)}')
        return None
    return launcher


def _chain(raw: RawConfig, planned: Sequence[PlannedStage | None], stages: Stages) -> None:
    """Every stage takes what the one before it leaves, and finds the inputs that it reads."""
    texts = raw.content.get("data")
    left, by = (None, "the model") if raw.content.get("model") is not None else ("nothing", "")
    for index, (kind, _) in enumerate(raw.items):
        owner, stage = stages.get(kind), planned[index]
        if owner is None:
            left = None  # unknown: say nothing about the next stage's place
            continue
        path = ("stages", index, kind)
        if left not in {None, "nothing"} and left not in owner.takes:
            raw.refuse(path, order_problem(index, kind, owner.takes, str(left), by))
        left, by = owner.leaves, f"stage {index + 1} {kind!r}"
        for material in sorted(owner.inputs_read(stage.config) & TEXTS.keys()) if stage else ():
            if not isinstance(texts, dict) or texts.get(TEXTS[material]) is None:
                raw.refuse(path, f"reads data.{TEXTS[material]}: expected a text there, got nothing")
    _beginning(raw, planned, stages)


def _beginning(raw: RawConfig, planned: Sequence[PlannedStage | None], stages: Stages) -> None:
    """Either there is a model, or the first stage makes one."""
    has_model = raw.content.get("model") is not None
    first = planned[0] if planned else None
    if planned and first is None:
        return  # it is refused already
    starts = first is not None and getattr(first.config, "architecture", None) is not None
    starts = starts and first is not None and "nothing" in stages[first.kind].takes
    if not has_model and not starts:
        way = "only a recipe whose first stage is `train` with `architecture` needs none"
        raw.refuse(("model",), f"expected a folder or a model of the hub, got nothing; {way}")
    for index, stage in enumerate(planned[1:], start=1):
        if stage is not None and getattr(stage.config, "architecture", None) is not None:
            problem = "a new model can only be made by the first stage: it would replace what came before"
            raw.refuse(("stages", index, raw.where.kinds[index], "architecture"), problem)
    if has_model and starts:
        problem = "expected either `model` or `architecture`, got both: the new model would replace the other"
        raw.refuse(("stages", 0, raw.where.kinds[0]), problem)


def order_problem(index: int, kind: str, takes: frozenset[str], left: str, by: str) -> str:
    """The text of the error about a stage in a place where it cannot work."""
    source = f"{by} {'is' if by == 'the model' else 'leaves'} {left}" if by else "there is no model before it"
    return f"stage {index + 1} {kind!r} takes {' or '.join(sorted(takes - {'nothing'}))}, but {source}"
