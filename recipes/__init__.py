"""A recipe goes in; artifacts, a report and a verdict come out.

from recipes import load_recipe, run
report = run(load_recipe("quickstart"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.config.errors import RecipeError
    from recipes.config.loader import load_recipe, shipped_recipes
    from recipes.config.recipe import Recipe
    from recipes.engine.plan import Plan, plan
    from recipes.engine.runner import run
    from recipes.runs.records import IntegrityError, StoreError

__all__ = [
    "IntegrityError",
    "Plan",
    "Recipe",
    "RecipeError",
    "StoreError",
    "load_recipe",
    "plan",
    "run",
    "shipped_recipes",
]

_HOMES = {
    "IntegrityError": "runs.records",
    "Plan": "engine.plan",
    "Recipe": "config.recipe",
    "RecipeError": "config.errors",
    "StoreError": "runs.records",
    "load_recipe": "config.loader",
    "plan": "engine.plan",
    "run": "engine.runner",
    "shipped_recipes": "config.loader",
}


def __getattr__(name: str) -> object:
    """Every name is loaded when it is asked for, so that a command brings only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"recipes.{_HOMES[name]}"), name)
