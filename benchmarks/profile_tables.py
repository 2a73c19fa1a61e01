"""The tables of `benchmarks.node_profile`."""

from typing import Any

from benchmarks.tables import Table

SHOWN = 6
PRODUCT = "MatMulNBits"
Json = dict[str, Any]


def profile_tables(run: Json) -> dict[str, list[Table]]:
    """One table for each bundle and context."""
    return {
        name: [_table(context, found, bundle["product_bytes"], run) for context, found in bundle["contexts"].items()]
        for name, bundle in run["bundles"].items()
    }


def _table(context: str, found: Json, product_bytes: int, run: Json) -> Table:
    whole = sum(entry["seconds"] for entry in found.values())
    ordered = sorted(found, key=lambda name: -found[name]["seconds"])
    rows = [_row(name, found[name], whole) for name in ordered[:SHOWN]]
    rest = [found[name] for name in ordered[SHOWN:]]
    if rest:
        together = {key: sum(entry[key] for entry in rest) for key in ("count", "seconds")}
        rows.append(_row("the rest", together, whole))
    speed = product_bytes / found[PRODUCT]["seconds"] / 1e9
    title = (
        f"One step at a context of {context} tokens: the products read {speed:.1f} GB/s of weights, "
        f"the memory gives {run['bandwidth'] / 1e9:.1f}"
    )
    return Table(title=title, columns=("operator", "nodes", "share of the time in nodes", "each"), rows=tuple(rows))


def _row(name: str, entry: Json, whole: float) -> tuple[str, ...]:
    each = f"{entry['seconds'] / entry['count'] * 1e6:.0f} us"
    return name, f"{entry['count']:.0f}", f"{entry['seconds'] / whole:.1%}", each
