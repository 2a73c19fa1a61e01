"""docs/benchmarks.md from the stored results, and the same tables for the terminal.

    python -m benchmarks.page [RESULTS_FOLDER [PAGE]]

Nothing is measured here. The prose around the tables stands in templates/benchmarks.md.j2.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.prepare import ROOT
from benchmarks.results import store
from benchmarks.tables import Table, model_tables

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "benchmarks.md"
WIDTH = 150
"""Columns of the terminal's tables where the terminal does not have more."""
Json = dict[str, Any]


def write_page(results: Path = HERE / "results", page: Path = PAGE) -> None:
    """Write the page from the results of every kind in TABLES that is there.

    Raises:
        FileNotFoundError: none of them is.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from benchmarks.front_picture import draw

    files = {name: results / f"{name}.json" for name in TABLES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{results}: expected {' or '.join(TABLES)}.json; run `python -m benchmarks.peers` first"
        )
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("benchmarks.md.j2").render(
        {name: found.get(name) for name in TABLES}, tables={name: tables_of(run) for name, run in found.items()}
    )
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    for name, model in found.get("front", {"models": {}})["models"].items():
        if model["variants"]:
            draw(name, model, page.parent / f"front-{name}.png")


def tables_of(run: Json) -> dict[str, list[Table]]:
    """The tables of a run by what they are about."""
    return TABLES[run["kind"]](run)


def _comparison(run: Json) -> dict[str, list[Table]]:
    return {name: model_tables(model) for name, model in run["models"].items()}


def _gpu(run: Json) -> dict[str, list[Table]]:
    from benchmarks.gpu_tables import gpu_tables

    return gpu_tables(run)


def _front(run: Json) -> dict[str, list[Table]]:
    from benchmarks.front_tables import front_tables

    return {name: front_tables(model) for name, model in run["models"].items()}


def _products(run: Json) -> dict[str, list[Table]]:
    from benchmarks.products_tables import products_tables

    return products_tables(run)


def _session_keys(run: Json) -> dict[str, list[Table]]:
    from benchmarks.session_tables import session_tables

    return session_tables(run)


def _speculation(run: Json) -> dict[str, list[Table]]:
    from benchmarks.speculation_tables import speculation_tables

    return speculation_tables(run)


def _scaling(run: Json) -> dict[str, list[Table]]:
    from benchmarks.scaling_tables import scaling_tables

    return {"scaling": scaling_tables(run)}


def _profile(run: Json) -> dict[str, list[Table]]:
    from benchmarks.profile_tables import profile_tables

    return profile_tables(run)


def _pruning(run: Json) -> dict[str, list[Table]]:
    from benchmarks.pruning_tables import pruning_tables

    return pruning_tables(run)


def _distillation(run: Json) -> dict[str, list[Table]]:
    from benchmarks.distillation_tables import distillation_tables

    return distillation_tables(run)


TABLES: dict[str, Callable[[Json], dict[str, list[Table]]]] = {
    "peers": _comparison,
    "gpu": _gpu,
    "front": _front,
    "products": _products,
    "session_keys": _session_keys,
    "speculation": _speculation,
    "scaling": _scaling,
    "profile": _profile,
    "pruning": _pruning,
    "distillation": _distillation,
}
"""The kinds of results; each is stored as <kind>.json."""


def print_results(run: Json) -> None:
    """The tables on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    console = Console(width=max(console.width, WIDTH))
    for name, tables in tables_of(run).items():
        for table in tables:
            shown = RichTable(title=f"{name}: {table.title}", box=box.SIMPLE, title_justify="left", show_lines=False)
            for index, column in enumerate(table.columns):
                shown.add_column(column, justify="right" if index else "left", overflow="fold")
            for row in table.rows:
                shown.add_row(*(workload.replace("**", "") for workload in row))
            console.print(shown)


def finish(results: Json, out: Path | None) -> None:
    """Store the results, if they are to be kept, and print their tables."""
    if out is not None:
        store(results, out)
    print_results(results)
    print("not stored: give --out" if out is None else f"stored in {out}")


if __name__ == "__main__":
    write_page(*(Path(argument) for argument in sys.argv[1:]))
