"""`demitasse benchmark A [B ...]`: folders of any format timed side by side."""

from itertools import product
from pathlib import Path

from evaluation.latency import Workload
from evaluation.machine import available_cores
from recipes.cli.benchmark_tables import show_benchmark
from recipes.cli.options import QUICK, RELEASE, USUAL, OptionError
from recipes.cli.terminal import Terminal
from recipes.config.errors import shown_path
from recipes.engine.benchmark import BenchmarkRequest
from recipes.engine.benchmark import benchmark as take


def benchmark(
    terminal: Terminal,
    *,
    folders: list[Path],
    quick: bool,
    release: bool,
    blocks: int | None,
    prompt: str,
    tokens: str,
    batch: str,
    threads: int | None,
    seed: int,
    max_ratio: float | None,
    out: Path | None,
) -> int:
    """Time the folders and show the figures; the exit code."""
    grid = product(_numbers("--batch", batch), _numbers("--prompt", prompt), _numbers("--tokens", tokens))
    request = BenchmarkRequest(
        folders=tuple(folders),
        workloads=tuple(Workload(prompt=length, tokens=new, batch=rows) for rows, length, new in grid),
        blocks=_blocks(quick, release, blocks),
        threads=threads or available_cores(),
        seed=seed,
        out=out,
        margin=_positive(max_ratio),
    )
    result = take(request, terminal.progress)
    show_benchmark(terminal.console, result)
    if out is not None:
        terminal.say(f"raw times and figures: {shown_path(out)}")
    return result.exit_code


def _blocks(quick: bool, release: bool, blocks: int | None) -> int:
    given = [name for name, is_given in (("--quick", quick), ("--release", release), ("--blocks", blocks)) if is_given]
    if len(given) > 1:
        raise OptionError(f"expected one of --quick, --release and --blocks, got {' and '.join(given)}")
    return blocks or (QUICK if quick else RELEASE if release else USUAL)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """ "128,512" -> (128, 512)"""
    parts = [part.strip() for part in text.strip("[] ").split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"{option}: expected whole numbers above 0 such as 128 or 128,512, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _positive(ratio: float | None) -> float | None:
    if ratio is not None and not 0 < ratio < float("inf"):
        raise OptionError(f"--max-ratio: expected a number above 0 such as 1.02, got {ratio}")
    return ratio
