"""A recipe goes in; artifacts, a report and a verdict come out. Everything that the command line does, as functions.

from recipes import load_recipe, run
report = run(load_recipe("quickstart", {"prune.sparsity": 0.5}), out="runs/half")

Every name below is loaded when it is asked for, so that a command brings only what it needs. `except DemitasseError`
catches whatever is meant for the user; `error.exit_code` is what the command would have ended in.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.errors import DemitasseError
    from compress.text import TextSource
    from evaluation.gate import Limit
    from evaluation.report import Report
    from recipes.config.errors import RecipeError
    from recipes.config.loader import load_recipe, shipped_recipes
    from recipes.config.recipe import BenchmarkConfig, EvaluateConfig, Recipe
    from recipes.engine.api import benchmark, compare, evaluate, gate, run_stage, sensitivity, verify
    from recipes.engine.plan import Plan, plan
    from recipes.engine.runner import run
    from recipes.runs.records import IntegrityError, StoreError
    from recipes.runs.report_file import read_report
else:
    from compress.names import face

    __getattr__, __dir__ = face(
        __name__,
        {
            "BenchmarkConfig": "recipes.config.recipe",
            "DemitasseError": "compress.errors",
            "EvaluateConfig": "recipes.config.recipe",
            "IntegrityError": "recipes.runs.records",
            "Limit": "evaluation.gate",
            "Plan": "recipes.engine.plan",
            "Recipe": "recipes.config.recipe",
            "RecipeError": "recipes.config.errors",
            "Report": "evaluation.report",
            "StoreError": "recipes.runs.records",
            "TextSource": "compress.text",
            "benchmark": "recipes.engine.api",
            "compare": "recipes.engine.api",
            "evaluate": "recipes.engine.api",
            "gate": "recipes.engine.api",
            "load_recipe": "recipes.config.loader",
            "plan": "recipes.engine.plan",
            "read_report": "recipes.runs.report_file",
            "run": "recipes.engine.runner",
            "run_stage": "recipes.engine.api",
            "sensitivity": "recipes.engine.api",
            "shipped_recipes": "recipes.config.loader",
            "verify": "recipes.engine.api",
        },
    )

__all__ = [
    "BenchmarkConfig",
    "DemitasseError",
    "EvaluateConfig",
    "IntegrityError",
    "Limit",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "StoreError",
    "TextSource",
    "benchmark",
    "compare",
    "evaluate",
    "gate",
    "load_recipe",
    "plan",
    "read_report",
    "run",
    "run_stage",
    "sensitivity",
    "shipped_recipes",
    "verify",
]
