"""A recipe goes in; artifacts, a report and a verdict come out.

from recipes import load_recipe, run
report = run(load_recipe("quickstart"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.errors import RecipeError
    from recipes.loader import load_recipe, shipped_recipes
    from recipes.planning import Plan, plan
    from recipes.runner import run
    from recipes.schema import Recipe
    from recipes.store import IntegrityError, StoreError

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
    "IntegrityError": "store",
    "Plan": "planning",
    "Recipe": "schema",
    "RecipeError": "errors",
    "StoreError": "store",
    "load_recipe": "loader",
    "plan": "planning",
    "run": "runner",
    "shipped_recipes": "loader",
}


def __getattr__(name: str) -> object:
    """Every name is loaded when it is asked for, so that a command brings only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"recipes.{_HOMES[name]}"), name)
