"""Write the table of what the installed ONNX Runtime can do on CUDA (`kernel_table` says what it holds).

    python -m export.placement.make_kernel_table [--out FILE]

No GPU is needed and no CUDA library: the provider is loaded over stand-ins (`stub_libraries`). Needed are the package
onnxruntime-gpu for Linux, a C compiler, and nm and readelf of binutils. It takes a minute. Once for each version of
ONNX Runtime: without its table a bundle's placement stays unknown until a GPU proves it.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.placement.host_memory import HostMemory, probe
from export.placement.kernel_table import operator, path_of
from export.placement.provider_binary import architectures, xqa
from export.placement.registered_kernels import NO_END, Kernel, registered
from export.placement.stub_libraries import build, library
from export.placement.trials import try_all

Row = tuple[int, int, dict[str, list[str]]]


def make_table() -> dict[str, Any]:
    """The table of the installed version.

    Raises:
        StubError: a tool is missing, or ONNX Runtime has no CUDA provider.
    """
    with TemporaryDirectory() as folder:
        libraries = Path(folder)
        build(libraries)
        kernels = registered(libraries)
        refused, fast = try_all(libraries)
        host = probe(libraries, kernels)
    rows = _rows(kernels)
    sets = sorted({" ".join(kinds) for listed in rows.values() for _, _, types in listed for kinds in types.values()})
    return {
        "architectures": architectures(library("cuda")),
        "xqa": xqa(library("cuda")),
        "fast": fast,
        "refused": sorted(([row.operator, row.when, row.says] for row in refused), key=str),
        "types": sets,
        "kernels": {name: [_written(row, sets) for row in listed] for name, listed in sorted(rows.items())},
        "host": _host(host),
    }


def _rows(kernels: list[Kernel]) -> dict[str, list[Row]]:
    """Operator -> its kernels; those that differ in the types of one variable are one."""
    found: dict[str, list[Row]] = {}
    for domain, name, first, last, types in kernels:
        found.setdefault(operator(domain, name), []).append((first, last, types))
    return {name: _joined(sorted(rows, key=str)) for name, rows in found.items()}


def _joined(rows: list[Row]) -> list[Row]:
    for one, other in combinations(rows, 2):
        if one[:2] == other[:2] and one[2].keys() == other[2].keys():
            differing = [name for name in one[2] if one[2][name] != other[2][name]]
            if len(differing) <= 1:
                both = one[2] | {name: sorted({*one[2][name], *other[2][name]}) for name in differing}
                rest = [row for row in rows if row is not one and row is not other]
                return _joined(sorted([*rest, (*one[:2], both)], key=lambda row: (row[0], row[1], str(row[2]))))
    return rows


def _written(row: Row, sets: list[str]) -> list[Any]:
    first, last, types = row
    return [first, None if last == NO_END else last, {key: sets.index(" ".join(kinds)) for key, kinds in types.items()}]


def _host(host: dict[tuple[str, str], HostMemory | None]) -> dict[str, Any]:
    named = {operator(*key): memory for key, memory in host.items()}
    return {
        name: None if memory is None else [list(memory.inputs), list(memory.outputs)]
        for name, memory in sorted(named.items())
        if memory is None or memory.inputs or memory.outputs
    }


def as_text(table: dict[str, Any]) -> str:
    """The file: a line for every operator."""
    parts = [f'"{key}": {_lines(value)}' for key, value in table.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    texts = [json.dumps(item, separators=(",", ":")) for _, item in rows]
    if isinstance(value, dict):
        texts = [f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True)]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return f"{opened}\n" + ",\n".join(texts) + f"\n{closed}"


def main() -> None:
    """Make the table and write it."""
    import onnxruntime

    options = argparse.ArgumentParser(description="Write the table of ONNX Runtime's CUDA kernels.")
    options.add_argument("--out", type=Path, default=path_of(onnxruntime.__version__), help="the file to write")
    out: Path = options.parse_args().out
    out.write_text(as_text(make_table()), encoding="utf-8")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
