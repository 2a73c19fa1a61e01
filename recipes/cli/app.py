"""The command line: what each command is called and which options it has. Its work is in a module of its own, imported
only when the command runs (`carry`), so that `--help` answers at once. Exit codes: see `failures.py`.

Commands whose options are made from configs are in `stage_commands.py`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from recipes.cli.options import DEBUG, LAUNCHER, QUICK, RELEASE, STORE, USUAL, carry
from recipes.cli.stage_commands import evaluate_command, sensitivity_command, stage_command
from recipes.cli.streams import ended
from recipes.config.stages import STAGES

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write.", show_default=False)]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as data.test=my.txt or prune.sparsity=0.5."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that export left, or a run's folder.")]
Replay = Annotated[
    bool,
    typer.Option(
        "--replay/--no-replay",
        help="Run the bundle on the rows that it carries, where it belongs or, without a GPU, on the CPU.",
    ),
]
AllowPending = Annotated[bool, typer.Option("--allow-pending", help="Take a bundle whose proof on a GPU is pending.")]
Measure = Annotated[
    bool, typer.Option("--measure", help="First prove and time here, on a GPU, what is pending of a bundle for CUDA.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="DIR", help="Where the model lies that the run began with.", show_default="where it lay"
    ),
]
UntilDecided = Annotated[
    float,
    typer.Option(
        "--until-decided", min=0, metavar="MINUTES", help="Measure on for so long while a gate is inconclusive."
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="URI",
        help="Log the report to this MLflow server (http://...) or folder.",
        show_default=False,
    ),
]
Register = Annotated[
    str | None,
    typer.Option(
        "--register",
        metavar="NAME",
        help="Register what ships under this name there, if it passed and nothing is too good.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, with report.json and artifacts.")]
Gates = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Apply the gates of this recipe.", show_default="the run's own"),
]
Bandwidth = Annotated[
    float | None,
    typer.Option(
        "--memory-bandwidth",
        min=0,
        metavar="GB/S",
        help="What the memory gives: a latency that needs more is flagged.",
        show_default="as the report says",
    ),
]
Judgment = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write the report of this judgment.", show_default=False)
]
First = Annotated[Path, typer.Argument(metavar="A", help="A run's folder: what B is divided by.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another run's folder.")]
Compared = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.json", help="Write it as JSON.", show_default=False)
]
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
Times = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.json",
        help="Every raw time and figure; where it exists, the benchmark goes on.",
        show_default=False,
        rich_help_panel=WRITES,
    ),
]
Root = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", envvar="DEMITASSE_STORE", help="A store, or the folder of a run.", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

HELP = """Compress a trained GPT, prove what that cost, and ship the result to ONNX Runtime.

Exit codes: 0 PASS, 1 FAIL, 2 recipe or usage error, 3 INCONCLUSIVE, 4 INVALID, 5 broken integrity, 130/143 interrupted.
"""
RECIPES, STEPS, BUNDLES, HELPERS = "Recipes", "One step by itself", "Bundles", "Help"


def main() -> None:
    """The command `demitasse`."""
    sys.exit(ended(lambda: application()()))  # an installed package may bring a stage that cannot be used


def application() -> typer.Typer:
    """Every command."""
    app = typer.Typer(name="demitasse", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(help=HELP)(_root)
    panels: dict[str, tuple[Callable[..., None], ...]] = {
        RECIPES: (run, plan, gate, compare),
        BUNDLES: (generate, verify),
        HELPERS: (schema, methods, doctor),
    }
    _add(app, RECIPES, panels)
    for stage in STAGES.values():
        app.command(stage.kind, rich_help_panel=STEPS)(stage_command(stage))
    app.command("evaluate", rich_help_panel=STEPS)(evaluate_command())
    app.command("sensitivity", rich_help_panel=STEPS)(sensitivity_command())
    app.command(rich_help_panel=STEPS)(benchmark)
    _add(app, BUNDLES, panels)
    app.add_typer(store_application(), rich_help_panel=HELPERS)
    _add(app, HELPERS, panels)
    return app


def _add(app: typer.Typer, panel: str, panels: Mapping[str, Sequence[Callable[..., None]]]) -> None:
    for command in panels[panel]:
        app.command(rich_help_panel=panel)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"demitasse {importlib.metadata.version('demitasse')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options that need no command."""


def run(
    recipe: Recipe,
    out: Out = None,
    settings: Settings = None,
    until_decided: UntilDecided = 0.0,
    track: Track = None,
    register: Register = None,
    store: STORE = None,
    launcher: LAUNCHER = None,
    debug: DEBUG = False,
) -> None:
    """Run a recipe: every stage, measured after each; then a report and a verdict."""
    carry(
        "recipes.cli.run:run",
        debug=debug,
        goes_on=True,
        recipe=recipe,
        out=out,
        settings=settings or (),
        until_decided=until_decided,
        track=track,
        register=register,
        store=store,
        launcher=launcher,
    )


def plan(
    recipe: Recipe,
    out: Out = None,
    settings: Settings = None,
    store: STORE = None,
    launcher: LAUNCHER = None,
    debug: DEBUG = False,
) -> None:
    """Show what a run would do: its stages, what is cached, estimated memory, disk and time."""
    named = {"recipe": recipe, "out": out, "settings": settings or (), "store": store, "launcher": launcher}
    carry("recipes.cli.run:plan", debug=debug, **named)


def gate(
    run: Run,
    recipe: Gates = None,
    out: Judgment = None,
    memory_bandwidth: Bandwidth = None,
    measure: Measure = False,
    model: Baseline = None,
    track: Track = None,
    register: Register = None,
    debug: DEBUG = False,
) -> None:
    """Judge a finished run again from its raw samples; no model is run.

    The same gates give the same verdict; if they do not, a file was changed, and the exit code is 5. With --measure
    what is pending of a run whose bundle is for CUDA is taken first, on a machine with a GPU.
    """
    carry(
        "recipes.cli.gate:gate",
        debug=debug,
        run=run,
        recipe=recipe,
        out=out,
        memory_bandwidth=memory_bandwidth,
        measure=measure,
        model=model,
        track=track,
        register=register,
    )


def compare(first: First, second: Second, out: Compared = None, debug: DEBUG = False) -> None:
    """Hold two candidates of the same baseline and test text against each other, paired by document."""
    carry("recipes.cli.compare:compare", debug=debug, first=first, second=second, out=out)


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
    out: Times = None,
    debug: DEBUG = False,
) -> None:
    """Time artifacts side by side: first token, every further one, cold start and memory, with intervals."""
    carry(
        "recipes.cli.benchmark:benchmark",
        debug=debug,
        goes_on=out is not None,
        folders=folders,
        quick=quick,
        release=release,
        blocks=blocks,
        prompt=prompt,
        tokens=tokens,
        batch=batch,
        threads=threads,
        seed=seed,
        max_ratio=max_ratio,
        out=out,
    )


def generate(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="At most so many new tokens.")] = 100,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", max=1, help="Draw from the likeliest tokens of this sum.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    speculate: Annotated[
        Literal["ngram"] | None,
        typer.Option(
            "--speculate", help="ngram: copies from the text are checked 4 tokens at a time.", show_default="none"
        ),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option("--provider", help="Where to run.", show_default="where the bundle was exported for"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")
    ] = None,
    debug: DEBUG = False,
) -> None:
    """Stream text from a bundle, through ONNX Runtime."""
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    given = {"bundle": bundle, "prompt": prompt, "tokens": tokens, "provider": provider, "threads": threads}
    carry("recipes.cli.bundle:generate", debug=debug, sampling=sampling, speculate=speculate, **given)


def verify(bundle: Bundle, replay: Replay = True, allow_pending: AllowPending = False, debug: DEBUG = False) -> None:
    """Check that a bundle is whole (files, graph, coverage), and that it computes here what its checkpoint did.

    On a GPU that proves what was still pending of a bundle for one, and keeps the proof beside it.
    """
    carry("recipes.cli.bundle:verify", debug=debug, bundle=bundle, again=replay, allow_pending=allow_pending)


def store_application() -> typer.Typer:
    """The commands that look after a store."""
    app = typer.Typer(name="store", no_args_is_help=True, help="Look after a store of results.")
    app.command("list")(list_results)
    app.command("verify")(verify_results)
    app.command("prune")(prune_results)
    return app


def list_results(root: Root, debug: DEBUG = False) -> None:
    """Show what a store holds, and what for."""
    carry("recipes.cli.store:list_results", debug=debug, root=root)


def verify_results(root: Root, debug: DEBUG = False) -> None:
    """Read every byte of a store, and say what is not what was stored."""
    carry("recipes.cli.store:verify", debug=debug, root=root)


def prune_results(root: Root, yes: Yes = False, debug: DEBUG = False) -> None:
    """Remove the results that no run refers to; says how much that is, and asks."""
    carry("recipes.cli.store:prune", debug=debug, root=root, yes=yes)


def schema(debug: DEBUG = False) -> None:
    """Print the JSON Schema of recipes, so that an editor completes and checks them."""
    carry("recipes.cli.help:schema", debug=debug)


def methods(debug: DEBUG = False) -> None:
    """List every method that a recipe can name, with one line each."""
    carry("recipes.cli.help:methods", debug=debug)


def doctor(debug: DEBUG = False) -> None:
    """Look at this machine: versions, CPU, GPUs, providers that really load, and what to do about the others."""
    carry("recipes.cli.help:doctor", debug=debug)
