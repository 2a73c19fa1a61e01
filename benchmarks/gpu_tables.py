"""The GPU's stored results as tables: what was proven, where nodes ran, how fast, how good students are.

Ratios are paired within blocks, with their 95 % interval; above 1 demitasse is faster.
"""

from typing import Any

import numpy as np

from benchmarks.gpu_variants import OURS, REFERENCES
from benchmarks.tables import Table, agreement, format_bytes, format_seconds, format_times
from benchmarks.targets import seconds_of
from evaluation.statistics import median_interval
from evaluation.units import format_number

CHECKS = ("prefill", "decode", "batch", "left padding", "independence", "context")
DIFFERENCES = 12
"""Nodes that are listed of those that differ."""
Json = dict[str, Any]


def gpu_tables(run: Json) -> dict[str, list[Table]]:
    """The tables of every section that ran, and how the sections ended."""
    found = {"sections": [sections_table(run["sections"])]}
    for name, section in run["sections"].items():
        if name == "speed":
            found |= {f"speed of {model}": speed_tables(part) for model, part in section.get("rows", {}).items()}
        elif section.get("rows"):
            found[name] = SECTION_TABLES[name](section)
    return {name: [table for table in tables if table.rows] for name, tables in found.items()}


def sections_table(sections: Json) -> Table:
    """How long each section took and how it ended."""
    rows = tuple(
        (name, format_seconds(section["seconds"]), section["error"] or "done") for name, section in sections.items()
    )
    return Table(title="Sections", columns=("section", "took", "ended"), rows=rows)


def parity_tables(section: Json) -> list[Table]:
    """Each version against its checkpoint in PyTorch: KL and, below, the largest difference of a log-probability."""
    rows = [
        (name, row.get("error") or row["verdict"], *(_figure(row, check) for check in CHECKS))
        for name, row in section["rows"].items()
    ]
    title = f"{section['model']} against the checkpoint: KL divergence, largest difference of a log-probability"
    return [Table(title=title, columns=("version", "export", *CHECKS), rows=tuple(rows))]


def _figure(row: Json, check: str) -> str:
    figure = row.get("figures", {}).get(check)
    if figure is None:
        return ""
    return figure.get("error") or f"{figure['kl']:.2g}\n{figure['log_probability']:.2g}"


def placement_tables(section: Json) -> list[Table]:
    """Nodes by provider, and what the table says of them."""
    columns = ("version", "nodes in the profile", "both agree", "differ", "only in the profile", "only in the table")
    rows, listed = [], []
    for name, row in section["rows"].items():
        if row["error"]:
            rows.append((name, f"n/a ({row['error']})", "", "", "", ""))
            continue
        if row["static"]:
            rows.append((name, _providers(row["profile"]), f"n/a ({row['static']})", "", "", ""))
            continue
        only = [_counts(row[key]) for key in ("only_in_profile", "only_in_static")]
        rows.append((name, _providers(row["profile"]), str(row["same"]), str(len(row["differences"])), *only))
        listed += [(name, *(one[key] for key in ("node", "operator", "profile", "static"))) for one in _first(row)]
    differ = Table(
        title="Nodes that ran elsewhere than the table says",
        columns=("version", "node", "operator", "ran on", "the table says"),
        rows=tuple(listed),
    )
    return [Table(title="Who ran which node", columns=columns, rows=tuple(rows)), differ]


def _first(row: Json) -> list[Json]:
    listed: list[Json] = row["differences"][:DIFFERENCES]
    return listed


def _providers(profile: Json) -> str:
    """Such as "CUDA 80" and, below, what the CPU ran."""
    lines = []
    for provider, operators in profile.items():
        short = provider.removesuffix("ExecutionProvider")
        listed = f" ({_counts(operators)})" if short == "CPU" else ""
        lines.append(f"{short} {sum(operators.values())}{listed}")
    return "\n".join(lines)


def _counts(counts: Json) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def distill_tables(section: Json) -> list[Table]:
    """Quality against tokens."""
    columns = (
        "training tokens",
        "rows a step",
        "learning rate",
        "took",
        "tokens a second",
        "perplexity",
        "of teacher's",
    )
    rows = tuple(
        (
            f"{row['tokens'] / 1e6:.3g} M",
            str(row["batch"]),
            f"{row['learning_rate']:.2g}",
            format_seconds(row["trained"]),
            format_number(row["tokens_per_second"]),
            f"{row['perplexity']:.2f}",
            f"{row['ratio']:.3f}x",
        )
        for row in section["rows"].values()
    )
    stopped = f"; {section['stopped']}" if section.get("stopped") else ""
    title = (
        f"{section['model']} to {section['layers']} layers, the teacher's perplexity {section['teacher']:.2f}{stopped}"
    )
    return [Table(title=title, columns=columns, rows=rows)]


SECTION_TABLES = {"parity": parity_tables, "placement": placement_tables, "distill": distill_tables}


def speed_tables(model: Json) -> list[Table]:
    """Size and start, decode, prefill, and ours against each reference."""
    variants = model["variants"]
    keys = list(dict.fromkeys(key for variant in variants.values() for key in variant["workloads"]))
    tables = [_footprint(model), _figures(variants, "decode", keys), _figures(variants, "prefill", keys)]
    return [*tables, *(_ratios(variants, name, keys) for name in REFERENCES if name in variants)]


def _footprint(model: Json) -> Table:
    columns = ("variant", "weights", "opens in", "first token after", "GPU memory", "next token as PyTorch")
    rows = []
    for variant in model["variants"].values():
        if not variant["load"]:
            rows.append((variant["title"], f"n/a ({variant['reason']})", *("" for _ in columns[2:])))
            continue
        load = variant["load"][-1]
        times = (format_seconds(load["open"]), format_seconds(load["first_token"]))
        figures = (format_bytes(variant["weight_bytes"]), *times, format_bytes(variant["gpu_memory"]))
        rows.append((variant["title"], *figures, agreement(model, variant)))
    return Table(title="Size, start, memory", columns=columns, rows=tuple(rows))


def _heads(keys: list[str]) -> tuple[str, ...]:
    return tuple(f"{tokens} tokens, batch {batch}" for _, tokens, batch in (key.split("-") for key in keys))


def _figures(variants: Json, kind: str, keys: list[str]) -> Table:
    """Decode as tokens per second, prefill as milliseconds."""
    keys = [key for key in keys if key.startswith(kind)]
    rows = [
        (variant["title"], *(_cell(variants, name, key) for key in keys))
        for name, variant in variants.items()
        if variant["workloads"]
    ]
    title = {"decode": "Decode, tokens per second", "prefill": "Prefill, milliseconds"}[kind]
    return Table(title=title, columns=("variant", *_heads(keys)), rows=tuple(rows) if keys else ())


def _cell(variants: Json, name: str, key: str) -> str:
    seconds = seconds_of(variants, name, key)
    if not seconds:
        reason = variants[name]["workloads"].get(key, {}).get("reason") or variants[name]["reason"]
        return f"n/a ({reason or 'no time'})"
    kind, _, batch = key.split("-")
    median = float(np.median(seconds))
    return format_number(int(batch) / median if kind == "decode" else median * 1e3)


def _ratios(variants: Json, reference: str, keys: list[str]) -> Table:
    """How many times as fast each of ours is as the reference."""
    keys = [key for key in keys if seconds_of(variants, reference, key)]
    rows = [
        (variants[name]["title"], *(_ratio(variants, reference, name, key) for key in keys))
        for name in OURS
        if name in variants and variants[name]["workloads"]
    ]
    heads = tuple(f"{key.split('-')[0]}, {head}" for key, head in zip(keys, _heads(keys), strict=True))
    title = f"Times as fast as {variants[reference]['title']}"
    return Table(title=title, columns=("variant", *heads), rows=tuple(rows) if keys else ())


def _ratio(variants: Json, reference: str, name: str, key: str) -> str:
    theirs, ours = np.array(seconds_of(variants, reference, key)), np.array(seconds_of(variants, name, key))
    if len(theirs) != len(ours):
        return "n/a"
    ratio = theirs / ours
    return format_times(float(np.median(ratio)), median_interval(ratio))
