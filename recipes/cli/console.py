"""What a command ends with: the table of a report, the gates and the verdict; and metadata as lines.

The figures come as finished text from evaluation's table; here they only get their places and colors.
"""

import json
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from evaluation.evaluation_view import Evaluation, evaluations
from evaluation.gate import LIMITS, GateResult, Verdict, format_compared
from evaluation.report import Report, Row, headline
from evaluation.table import Cell, cell_of, describe_gate, table_columns, table_rows
from evaluation.units import format_duration, format_value
from recipes.cli.terminal import inline
from recipes.config.errors import shown_path

if TYPE_CHECKING:
    from export.bundle import BundleSummary
    from recipes.cli.doctor import Finding
    from recipes.engine.plan import Plan, PlannedStep

COLORS: dict[Verdict | None, str] = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "INCONCLUSIVE": "bold yellow",
    "INVALID": "bold magenta",
    None: "bold",
}
ESTIMATES = ("Memory", "Disk", "Time")
SHORT = ("weight_bytes", "perplexity")
"""What the line about a finished stage tells."""


def show_row(console: Console, row: Row) -> None:
    """One line about an artifact that is finished and measured."""
    figures = [_short(cell_of(row.measurement(metric)), metric) for metric in SHORT]
    spent = "reused" if row.reused else "" if row.seconds is None else format_duration(row.seconds)
    parts = [
        f"[green]done[/] {inline(row.name):<12}",
        *(inline(figure) for figure in figures if figure),
        f"[dim]{spent}[/]",
    ]
    console.print("  ".join(parts), soft_wrap=True)


def _short(cell: Cell, metric: str) -> str:
    name = {"weight_bytes": "", "perplexity": "perplexity "}[metric]
    ratio = f" ({cell.ratio})" if cell.ratio else ""
    return f"{name}{cell.value}{ratio}" if cell.value else ""


def show_report(console: Console, report: Report) -> None:
    """The table with a row per artifact, every gate, the verdict and where to read more."""
    console.print()
    _show_tables(console, report)
    if report.gates:
        console.print()
        show_gates(console, [(gate.metric, gate) for gate in report.gates])
    name = report.verdict or "NOT GATED"
    console.print()
    told = headline(report.verdict, len(report.sanity_warnings))
    console.print(f"[{COLORS[report.verdict]}]{name}[/]  {inline(told)}", soft_wrap=True)
    for metric, reason in report.sanity_warnings.items():
        console.print(f"[bold yellow]too good[/]  {inline(metric)}: {inline(reason)}", soft_wrap=True)
    show_place(console, report)


def show_figures(console: Console, report: Report) -> None:
    """The table of a report that judges nothing."""
    _show_tables(console, report)
    show_place(console, report)


def _show_tables(console: Console, report: Report) -> None:
    console.print(report_table(report))
    found = evaluations(report)
    if found:
        console.print()
        console.print(_named_table(found))


def _named_table(found: Sequence[Evaluation]) -> Table:
    """A row per figure of the named evaluations and noises: the baseline's and that of what ships."""
    table = _table("Evaluation")
    table.add_column("", no_wrap=True)
    for heading in ("Baseline", "Last", "Against it", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in found:
        for index, line in enumerate(evaluation.lines):
            cells = (line.name, _figure(line.baseline), _figure(line.final), inline(line.against), inline(line.between))
            table.add_row(inline("" if index else evaluation.name), *cells)
    return table


def show_place(console: Console, report: Report) -> None:
    """Where a report is to be read in full."""
    if report.folder is not None:
        console.print(f"report: {inline(shown_path(report.folder / 'report.html'))}", soft_wrap=True)


def report_table(report: Report) -> Table:
    """A row per artifact: each figure with its ratio to the baseline."""
    table = _table("Stage")
    for heading in table_columns(report).values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in table_rows(report):
        table.add_row(inline(row.name), *(_figure(cell) for cell in row.cells))
    return table


def _figure(cell: Cell) -> str:
    if cell.invalid:
        return "[magenta]invalid[/]"
    return f"{inline(cell.value)}  [dim]{inline(cell.ratio)}[/]" if cell.ratio else inline(cell.value)


def show_gates(console: Console, gates: Sequence[tuple[str, GateResult]], *, told: Container[str] = ()) -> None:
    """A row per gate, under its name: what was asked, what came, the verdict. Below, why some are not decided.

    Args:
        told: reasons that were shown already.
    """
    table = _table("Gate")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # users name evaluations at any length
    for heading in ("Limit", "Measured", "95 % interval", "Verdict"):
        table.add_column(heading, no_wrap=True)
    reasons: dict[str, list[str]] = {}
    for name, gate in gates:
        cell = describe_gate(gate)
        verdict = f"[{COLORS[gate.verdict]}]{gate.verdict}[/]"
        table.add_row(inline(name), inline(_limit(gate)), inline(cell.value), inline(cell.interval), verdict)
        if gate.verdict in {"INCONCLUSIVE", "INVALID"} and gate.detail not in told:
            reasons.setdefault(gate.detail, []).append(name)
    console.print(table)
    for reason, names in reasons.items():
        console.print(inline(f"{', '.join(names)}: {reason}"), soft_wrap=True)


def _limit(gate: GateResult) -> str:
    """The limit as what was measured is written: "at most 1.100x", "at most +0.500", "at least 93.0 %"."""
    return f"{LIMITS[gate.limit.kind]} {format_compared(gate.metric, gate.limit, gate.limit.bound)}"


def show_plan(console: Console, plan: "Plan") -> None:
    """A row per stage, and what all of it takes."""
    head = f"{plan.recipe}: from {plan.model} into {shown_path(plan.out)}"
    console.print(inline(head), soft_wrap=True)
    table = _table("Stage")
    for heading in ("Leaves", "State", "Memory", "Disk", "Time", "Knobs"):
        table.add_column(heading, no_wrap=heading != "Knobs", justify="right" if heading in ESTIMATES else "left")
    for step in plan.steps:
        state = "[green]cached[/]" if step.cached else "to do"
        knobs = ", ".join(f"{name}: {_flow(value)}" for name, value in step.knobs.items()) or "defaults"
        table.add_row(inline(f"{step.number} {step.name}"), inline(step.format), state, *_estimate(step), inline(knobs))
    console.print(table)
    each = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in plan.measuring.items())
    longest = f" (at most {format_duration(plan.undecided)}, where its gates stay open)" if _early(plan) else ""
    console.print(f"measuring, where it is not cached: {inline(each)}{longest}", soft_wrap=True)
    left = sum(not step.cached for step in plan.steps)
    memory, disk = format_value("peak_memory", plan.memory), format_value("disk_bytes", plan.disk)
    todo = f"to do: about {format_duration(plan.seconds)} with all measurements, {disk} of disk, {memory} of memory"
    console.print(todo if left else "every stage is cached", soft_wrap=True)


def _early(plan: "Plan") -> bool:
    """Whether timing, which is named last, is taken to end before its last block."""
    return plan.undecided > plan.measuring.get("timing", plan.undecided)


def _flow(value: Any) -> str:
    """A knob's value as a recipe has it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
    return str(value) if isinstance(value, str | float) else json.dumps(value)


def _estimate(step: "PlannedStep") -> tuple[str, str, str]:
    if step.cached:
        return "", "", ""
    estimate = step.estimate
    memory, disk = format_value("peak_memory", estimate.memory), format_value("disk_bytes", estimate.disk)
    return memory, disk, format_duration(estimate.seconds)


def metadata_table(metadata: Mapping[str, Any]) -> Table:
    """What a stage says about its work; long lists and nested values are only counted."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in metadata.items():
        table.add_row(inline(name.replace("_", " ")), inline(_metadata_line(value)))
    return table


def _metadata_line(value: object) -> str:
    if isinstance(value, Mapping) and value and not any(isinstance(inner, list | Mapping) for inner in value.values()):
        return ", ".join(f"{name.replace('_', ' ')} {_metadata_line(inner)}" for name, inner in value.items())
    if isinstance(value, list | Mapping):
        return f"{len(value)} entries"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def show_bundle(console: Console, summary: "BundleSummary") -> None:
    """What a verified bundle is."""
    versions = ", ".join(f"{name} {version}" for name, version in summary.libraries.items())
    size = format_value("disk_bytes", summary.size)
    console.print(f"[bold green]whole[/]  {inline(shown_path(summary.folder))}", soft_wrap=True)
    lines = {"files": f"{summary.files}, {size}", "provider": summary.provider, "made with": versions}
    if summary.foreign:
        lines["beside it"] = f"{', '.join(summary.foreign)}: of others, and nothing that runs the bundle reads it"
    lines |= _proof_lines(summary)
    console.print(metadata_table({**lines, **_coverage_lines(summary.coverage), **_parity_lines(summary.parity)}))


def _proof_lines(summary: "BundleSummary") -> dict[str, str]:
    """What proves where its nodes run and what they compute."""
    from export.proof import read_proof

    placement, arithmetic, proof = summary.placement, summary.arithmetic, read_proof(summary.folder)
    counted = f"{placement['nodes']} nodes, and {placement['shape_arithmetic']} of shapes on the CPU"
    remarks = "".join(f"; {remark}" for remark in placement.get("remarks", ()))
    pending = arithmetic.get("pending", "")
    later = f"{pending} on {proof.device}, ONNX Runtime {proof.onnxruntime}" if proof else f"pending: {pending}"
    return {
        "placement": f"{placement['proven']}: {counted if placement['nodes'] else 'not known'}{remarks}",
        "arithmetic": arithmetic["proven"] + (f"; {later}" if pending else ""),
    }


def _coverage_lines(coverage: Mapping[str, Any]) -> dict[str, str]:
    """How much is quantized, and which matrices are not."""
    kinds = [kind for kind in ("int8", "int4") if coverage[kind]]
    held = {kind: format_value("weight_bytes", coverage[f"{kind}_bytes"]) for kind in (*kinds, "scale", "float")}
    lines = {kind: f"{len(coverage[kind])} matrices, {held[kind]}" for kind in kinds}
    if kinds:
        lines["scales"] = held["scale"]
    rest = ", ".join(coverage["float"]) if coverage["float"] else "only norms, biases and positions"
    return {**lines, "float": f"{held['float']}: {rest}"}


def _parity_lines(parity: Mapping[str, Any]) -> dict[str, str]:
    """The worst figure of each arithmetic beside its tolerance."""
    lines = {}
    for arithmetic, checks in parity.items():
        if isinstance(checks, dict) and arithmetic != "self_test":
            allowed = checks["tolerance"]
            worst = {
                figure: max(check[figure] for name, check in checks.items() if name != "tolerance")
                for figure in allowed
            }
            figures = (f"{name.replace('_', ' ')} within {worst[name]:g} (at most {allowed[name]:g})" for name in worst)
            lines[f"parity, {arithmetic}"] = ", ".join(figures)
    return lines


def show_self_test(console: Console, figures: Mapping[str, Any]) -> None:
    """What the bundle said on this machine about the rows that it carries."""
    told = f"a KL of {figures['kl']:g} nats over {figures['positions']:,} positions (at most {figures['tolerance']:g})"
    console.print(f"[bold green]parity holds here[/]  {told}, on {figures['provider'].upper()}", soft_wrap=True)


def show_list(console: Console, heading: str, entries: Sequence[tuple[str, str]]) -> None:
    """A heading and its names, with one line each."""
    console.print(f"[bold]{inline(heading)}[/]")
    width = max((len(name) for name, _ in entries), default=0)
    for name, line in entries:
        console.print(f"  {inline(name):<{width}}  {inline(line)}", soft_wrap=True)


def show_finding(console: Console, finding: "Finding") -> None:
    """One line of the doctor's, and what to do below it."""
    color = {"ok": "green", "note": "yellow", "missing": "red"}[finding.status]
    head = f"[{color}]{finding.status:<7}[/]  {inline(finding.subject):<22}"
    console.print(f"{head}  {inline(finding.found)}", soft_wrap=True)
    if finding.advice:
        console.print(f"{'':33}[dim]->[/] {inline(finding.advice)}", soft_wrap=True)


def _table(first: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first, no_wrap=True)
    return table
