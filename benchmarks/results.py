"""What every benchmark does with its results: where they lie, what it says on the way, how large a folder is."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.grid import Tell

RESULTS = Path(__file__).resolve().parent / "results"
Json = dict[str, Any]


def store(results: Json, out: Path) -> None:
    """Write the results down."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the weights (the largest file) and of everything."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return {"weight_bytes": max(sizes), "bytes": sum(sizes)}


def teller(name: str) -> Tell:
    """Says on stderr what goes on, one line that is overwritten where that is a terminal."""
    from rich.console import Console

    console, started = Console(stderr=True), time.perf_counter()

    def tell(what: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:6.0f} s[/]  {name}  {what}", highlight=False)

    return tell
