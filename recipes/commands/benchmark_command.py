"""`demitasse benchmark A [B ...]`: folders of any form timed side by side; the work is in `benchmark.py`."""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.verb_commands import DEBUG

QUICK, USUAL, RELEASE = 5, 10, 20
PROTOCOL, WRITES = "Protocol", "What it writes"
Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="A [B ...]",
        help="Checkpoints, bundles, or the folders of runs (their last artifact); the first one is the baseline.",
        show_default=False,
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help=f"{QUICK} blocks: a look.", rich_help_panel=PROTOCOL)]
Release = Annotated[bool, typer.Option("--release", help=f"{RELEASE} blocks: to release on.", rich_help_panel=PROTOCOL)]
Blocks = Annotated[
    int | None,
    typer.Option("--blocks", min=3, help=f"Blocks.  [default: {USUAL}]", show_default=False, rich_help_panel=PROTOCOL),
]
Prompt = Annotated[
    str,
    typer.Option("--prompt", metavar="LIST", help="Tokens of the prompt, such as 128,512.", rich_help_panel=PROTOCOL),
]
Tokens = Annotated[
    str, typer.Option("--tokens", metavar="LIST", help="New tokens, such as 64.", rich_help_panel=PROTOCOL)
]
Batch = Annotated[str, typer.Option("--batch", metavar="LIST", help="Rows, such as 1,8.", rich_help_panel=PROTOCOL)]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores", rich_help_panel=PROTOCOL),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of orders and prompts.", rich_help_panel=PROTOCOL)]
MaxRatio = Annotated[
    float | None,
    typer.Option(
        "--max-ratio",
        metavar="NUMBER",
        help="Judge: at most so many times the baseline's latency, such as 1.02.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.json",
        help="Every raw time and figure; where it exists, the benchmark goes on.",
        show_default=False,
        rich_help_panel=WRITES,
    ),
]


def benchmark(
    folders: Folders,
    quick: Quick = False,
    release: Release = False,
    blocks: Blocks = None,
    prompt: Prompt = "128",
    tokens: Tokens = "64",
    batch: Batch = "1",
    threads: Threads = None,
    seed: Seed = 0,
    max_ratio: MaxRatio = None,
    out: Out = None,
    debug: DEBUG = False,
) -> None:
    """Time artifacts side by side: first token, every further one, cold start and memory, with intervals."""
    from recipes.session import session

    with session(debug=debug, goes_on=out is not None) as terminal:
        from evaluation.gate import exit_code
        from evaluation.latency import Cell
        from recipes.commands.benchmark_view import show_benchmark
        from recipes.outcome import shown_path
        from recipes.schema import available_cores
        from recipes.timing.benchmark import Order
        from recipes.timing.benchmark import benchmark as take

        grid = product(_numbers("--batch", batch), _numbers("--prompt", prompt), _numbers("--tokens", tokens))
        order = Order(
            folders=tuple(folders),
            cells=tuple(Cell(prompt=length, tokens=new, batch=rows) for rows, length, new in grid),
            blocks=_blocks(quick, release, blocks),
            threads=threads or available_cores(),
            seed=seed,
            out=out,
            margin=_positive(max_ratio),
        )
        result = take(order, terminal.progress)
        show_benchmark(terminal.console, result)
        if out is not None:
            terminal.say(f"raw times and figures: {shown_path(out)}")
        raise SystemExit(exit_code(result.verdict))


def _blocks(quick: bool, release: bool, blocks: int | None) -> int:
    from recipes.commands.options import OptionError

    given = [name for name, is_given in (("--quick", quick), ("--release", release), ("--blocks", blocks)) if is_given]
    if len(given) > 1:
        raise OptionError(f"expected one of --quick, --release and --blocks, got {' and '.join(given)}")
    return blocks or (QUICK if quick else RELEASE if release else USUAL)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """ "128,512" -> (128, 512)"""
    from recipes.commands.options import OptionError

    parts = [part.strip() for part in text.strip("[] ").split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"{option}: expected whole numbers above 0 such as 128 or 128,512, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _positive(ratio: float | None) -> float | None:
    from recipes.commands.options import OptionError

    if ratio is not None and not 0 < ratio < float("inf"):
        raise OptionError(f"--max-ratio: expected a number above 0 such as 1.02, got {ratio}")
    return ratio
