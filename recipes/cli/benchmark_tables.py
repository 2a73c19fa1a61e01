"""The benchmark as tables: one for each workload, one of cold start and memory, and the verdict where one was asked
for."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from evaluation.latency.figures import kept_blocks
from evaluation.latency.paired import describe_percentile
from evaluation.latency.record import Workload
from evaluation.measurement import Measurement
from evaluation.units import format_interval, format_ratio, format_ratio_interval, format_value
from recipes.cli.console import COLORS, show_gates
from recipes.cli.terminal import inline
from recipes.engine.benchmark import Result, Steps

WORKLOAD_COLUMNS = {
    "prefill_latency": "Time to first token",
    "decode_latency": "Time per token",
    "end_to_end_latency": "End to end",
    "throughput": "Throughput",
}
PROCESS_COLUMNS = {
    "open_latency": "Opening",
    "first_run_latency": "First run",
    "peak_memory": "Peak memory",
    "gpu_memory": "GPU memory",
    "weight_bytes": "Weights",
    "macs": "MACs per token",
}
TAILS = ("p50", "p90", "p95", "p99")


def show_benchmark(console: Console, result: Result) -> None:
    """All tables, what was left out, and the verdict."""
    session = result.session
    for workload, measured, steps in zip(session.protocol.workloads, result.workloads, result.steps, strict=True):
        console.print(f"\n[bold]{inline(str(workload))}[/]", soft_wrap=True)
        console.print(_workload_table(workload, measured, steps))
    console.print("\n[bold]cold start, memory, counts[/]", soft_wrap=True)
    console.print(_table(PROCESS_COLUMNS, result.processes))
    _show_protocol(console, result)
    for variant, reason in result.invalid.items():
        console.print(f"[{COLORS['INVALID']}]INVALID[/]  {inline(variant)}: {inline(reason)}", soft_wrap=True)
    for workload, of_workload in groupby(result.gates, key=lambda judged: judged.workload):
        several = len(session.protocol.workloads) > 1
        console.print(f"\n[bold]{inline(str(workload))}[/]" if several else "", soft_wrap=True)
        gates = [(f"{judged.variant}: {gate.metric}", gate) for judged in of_workload for gate in judged.gates]
        show_gates(console, gates, told=result.invalid.values())


def _workload_table(workload: Workload, measured: dict[str, list[Measurement]], steps: dict[str, Steps]) -> Table:
    tails = {variant: _tails(of_variant) for variant, of_variant in steps.items()}
    return _table(WORKLOAD_COLUMNS, measured, {"Single steps": tails} if tails else {})


def _tails(steps: Steps) -> str:
    return "\n".join(f"{name} {describe_percentile(steps.percentiles[name], steps.needs[name])}" for name in TAILS)


def _table(
    columns: dict[str, str], measured: dict[str, list[Measurement]], further: dict[str, dict[str, str]] | None = None
) -> Table:
    """A row per variant; the figure with its interval, and below it the ratio to the baseline with its own."""
    by_variant = {variant: {one.metric: one for one in measurements} for variant, measurements in measured.items()}
    shown = {metric: heading for metric, heading in columns.items() if any(metric in of for of in by_variant.values())}
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Variant", no_wrap=True)
    further = further or {}
    for heading in (*shown.values(), *further):
        table.add_column(heading)
    for variant, of in by_variant.items():
        table.add_row(
            inline(variant),
            *(_figure(of.get(metric)) for metric in shown),
            *(text[variant] for text in further.values()),
        )
    return table


def _figure(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    if measurement.invalid:
        return "[magenta]invalid[/]"
    text = inline(format_value(measurement.metric, measurement.value))
    if measurement.interval is not None:
        between = format_interval(measurement.metric, measurement.interval, measurement.value)
        text += f" [dim]({inline(between)})[/]"
    ratio = measurement.ratio
    if ratio is None:
        return text
    text += f"\n{format_ratio(ratio.value)}"
    return text if ratio.interval is None else f"{text} [dim]({format_ratio_interval(ratio.interval)})[/]"


def _show_protocol(console: Console, result: Result) -> None:
    session = result.session
    for variant in session.variants:
        trial = next(iter(session.of(variant).values()), None)
        if trial is not None:
            kept = kept_blocks(session, variant).describe()
            console.print(f"{inline(variant)}: {inline(trial.runtime)}; {inline(kept)}", soft_wrap=True)
    about = f"{session.protocol.describe()}; seed {session.protocol.seed}; 95 % intervals"
    console.print(f"[dim]{inline(about)}[/]", soft_wrap=True)
