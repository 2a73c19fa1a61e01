"""Methods by name: a registry is one dict, and everything that offers its entries to a user follows from that.

    CRITERIA: dict[str, Criterion]                the entry: one line about it, what it needs, the code (`lazy`)
    criterion: Annotated[str, OneOf(CRITERIA)]    the knob: the recipe's schema, its errors and the command's options

Adding a method is its function and its line in the dict.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def lazy(place: str) -> Callable[..., Any]:
    """The function at "module:name", imported when it is first called, so that a registry of it loads at once."""
    module, _, name = place.partition(":")

    def call(*given: Any, **named: Any) -> Any:
        return getattr(import_module(module), name)(*given, **named)

    call.__qualname__ = place
    return call


class OneOf:
    """The type of a knob that names an entry of a registry."""

    def __init__(self, registry: Mapping[str, object]) -> None:
        self.registry = registry

    @property
    def names(self) -> list[str]:
        """What may be named."""
        return list(self.registry)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(self.names)
