"""What installed packages add: entry points of a group, loaded when somebody first asks for what is not ours.

    [project.entry-points."demitasse.stages"]     # in the other package's pyproject.toml
    tint = "their_package.tinting:TINT"           # a `Stage` whose kind is "tint"

An entry point that cannot be used is an error that names its distribution: a recipe must not quietly mean less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from compress.errors import DemitasseError

Entry = TypeVar("Entry")


class ExtensionError(DemitasseError):
    """What another package registers cannot be used; the message names its distribution and the way out."""


@dataclass(frozen=True, kw_only=True)
class Extension(Generic[Entry]):
    """An entry of another package."""

    entry: Entry
    distribution: str
    """Its name and version, such as "tint 1.0"."""


def extensions_of(group: str, kind: type[Entry]) -> dict[str, Extension[Entry]]:
    """What installed packages register under a group, by name.

    Raises:
        ExtensionError: one of it cannot be loaded, or is of another kind.
    """
    found: dict[str, Extension[Entry]] = {}
    for point in sorted(entry_points(group=group)):
        distribution = "an unnamed distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        where = f"{distribution}: entry point {point.name!r} of {group}"
        try:
            entry = point.load()
        except Exception as error:  # it is code of somebody else, which may fail in any way
            wrong = f"{where}: expected {point.value} to be there, got {type(error).__name__}: {error}"
            raise ExtensionError(f"{wrong}; mend the package, or uninstall it") from error
        if not isinstance(entry, kind):
            expected = f"expected a {kind.__name__}, got {type(entry).__name__}"
            raise ExtensionError(f"{where}: {expected}; mend the package, or uninstall it")
        if point.name in found:
            raise ExtensionError(f"{where}: {found[point.name].distribution} has that name, too; uninstall one of them")
        found[point.name] = Extension(entry=entry, distribution=distribution)
    return found


class Extended(Mapping[str, Entry]):
    """Our own entries, and those that installed packages register; no name of ours can be taken."""

    def __init__(self, own: Mapping[str, Entry], *, group: str, kind: type[Entry]) -> None:
        self.own, self.group, self.kind = own, group, kind

    @cached_property
    def _all(self) -> dict[str, Entry]:
        found = extensions_of(self.group, self.kind)
        for name in self.own.keys() & found.keys():
            raise ExtensionError(
                f"{found[name].distribution}: entry point {name!r} of {self.group}: expected another name than "
                f"{', '.join(self.own)}, which are ours; uninstall it"
            )
        return {**self.own, **{name: extension.entry for name, extension in found.items()}}

    def __getitem__(self, name: str) -> Entry:
        return self.own[name] if name in self.own else self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
