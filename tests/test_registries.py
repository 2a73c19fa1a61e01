"""Adding a method is a function and a line: whatever offers methods to a user follows from the registry alone."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from compress.distillation.config import ALL_LOSSES, LAYER_LOSSES, DistillConfig, LayerLoss
from compress.pruning.config import CRITERIA, Criterion, PruneConfig, SensitivityConfig
from compress.quantization.config import ROUNDING, SCHEMES, QuantizeConfig, Rounding, Scheme
from compress.structured.config import IMPORTANCES, Importance, SlimConfig
from compress.training.config import LOSSES, Loss
from recipes.cli.methods import as_markdown, methods
from recipes.cli.options import build, parameters
from recipes.config.recipe import json_schema

ROOT = Path(__file__).resolve().parent.parent
NAME = "of_ones_own"
CASES: list[tuple[list[MutableMapping[str, Any]], Any, list[tuple[type[BaseModel], str]]]] = [
    ([CRITERIA], Criterion("mine", "nothing", abs), [(PruneConfig, "criterion"), (SensitivityConfig, "criterion")]),
    ([IMPORTANCES], Importance("mine", False, abs), [(SlimConfig, "importance")]),
    ([LOSSES, ALL_LOSSES], Loss(summary="mine", function=abs), [(DistillConfig, "losses")]),
    (
        [LAYER_LOSSES, ALL_LOSSES],
        LayerLoss(summary="mine", function=abs, parts=("hidden",), everywhere=True),
        [(DistillConfig, "losses")],
    ),
    ([SCHEMES], Scheme(summary="mine", run=abs), [(QuantizeConfig, "scheme")]),
    ([ROUNDING], Rounding(summary="mine", reads="nothing", run=abs), [(QuantizeConfig, "method")]),
]
"""Registries that get a further entry, the entry, and the knobs that may name it."""


NEEDED: dict[tuple[type[BaseModel], str], dict[str, str]] = {
    (PruneConfig, "criterion"): {"sparsity": "0.5"},
    (SlimConfig, "importance"): {"ffn": "0.5"},
    (QuantizeConfig, "method"): {"scheme": "int4"},
}
"""What else a knob asks for."""


@pytest.fixture(params=CASES, ids=lambda case: type(case[1]).__name__)
def added(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[type[BaseModel], str]]]:
    registries, entry, knobs = request.param
    for registry in registries:
        monkeypatch.setitem(registry, NAME, entry)
    configs = [*(config for config, _ in knobs), DistillConfig]  # which holds quantize's
    for config in configs:
        config.model_rebuild(force=True)
    yield knobs
    monkeypatch.undo()
    for config in configs:
        config.model_rebuild(force=True)


def test_a_line_in_a_registry_is_all_that_a_method_needs(added: list[tuple[type[BaseModel], str]]) -> None:
    named = {heading: dict(entries) for heading, entries in methods()}
    assert [entries[NAME] for entries in named.values() if NAME in entries] == ["mine"]
    assert f"| `{NAME}` | mine |" in as_markdown()
    schema = json_schema()["$defs"]
    for config, knob in added:
        written = f"{{{NAME}: 1}}" if knob == "losses" else NAME
        rest = NEEDED.get((config, knob), {})
        found = getattr(build(config, {knob: written, **rest}), knob)
        assert found == ({NAME: 1.0} if knob == "losses" else NAME)
        if config is not SensitivityConfig:
            assert NAME in str(schema[config.__name__]["properties"][knob])
        if knob != "losses":
            (option,) = [one for one in parameters(config, "Knobs") if one.name == knob]
            assert NAME in option.annotation.__metadata__[0].metavar


def test_the_page_of_methods_is_what_the_registries_say() -> None:
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == as_markdown(), "run `make docs`"
