"""Errors: one base for all that is meant for the user, each with the exit code of its command."""

import ast
from pathlib import Path

import pytest

from compress import CheckpointError, StageError, TextError
from compress.errors import DemitasseError
from compress.training.launch import launch
from export import BundleError, BundleIntegrityError, PromptError, ProviderError
from export.parity import ParityError
from export.stage import UnprovenError
from recipes import IntegrityError, RecipeError, StoreError
from recipes.engine.compare import CompareError
from recipes.formats.base import MeasureError
from recipes.runs.failures import exit_code, message
from recipes.runs.report_file import ReportError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compress", "export", "evaluation", "recipes")
NOT_TOLD = {"DemitasseError", "FollowedError", "_ReachedError", "_AllNotedError"}
"""The base itself, and what ends a piece of work and is caught by who began it."""
CODES = {
    **dict.fromkeys((CheckpointError, StageError, TextError, BundleError, PromptError, ProviderError), 2),
    **dict.fromkeys((RecipeError, StoreError, CompareError, ReportError), 2),
    **dict.fromkeys((MeasureError, ParityError, UnprovenError), 4),
    **dict.fromkeys((IntegrityError, BundleIntegrityError), 5),
}


def test_every_error_that_is_raised_for_the_user_has_the_one_base() -> None:
    classes = [
        node
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert len(classes) > 20
    bare = {
        node.name
        for node in classes
        if any(isinstance(base, ast.Name) and base.id == "Exception" for base in node.bases)
    }
    assert bare == NOT_TOLD, "derive it from compress.errors.DemitasseError, and say its exit_code where it is not 2"


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_an_error_knows_its_exit_code(kind: type[DemitasseError], code: int) -> None:
    assert kind.exit_code == code
    assert exit_code(kind(["one"]) if kind is RecipeError else kind("one")) == code  # type: ignore[arg-type]


def test_an_error_of_somebody_else_proves_nothing() -> None:
    assert exit_code(ValueError("x")) == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9437184 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_is_not_there_is_the_systems_affair(error: Exception) -> None:
    assert exit_code(error) == 2
    assert message(error).startswith("out of memory; ")


def test_a_launchers_variable_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(DemitasseError, match=r"WORLD_SIZE: expected a whole number, .*got 'x'"):
        launch()
