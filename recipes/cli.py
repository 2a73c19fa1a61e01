"""The command line: every command reads its options here and calls the engine; nothing is computed in this file.

What is heavy is imported by the command that needs it, so that `--help` answers at once. Exit codes: see `failures.py`.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from recipes.commands.tracking_options import Register, Track
from recipes.session import session

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write.", show_default=False)]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as data.test=my.txt or prune.sparsity=0.5."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that export left, or a run's folder.")]
Replay = Annotated[
    bool, typer.Option("--replay/--no-replay", help="Run the bundle on the rows that it carries, on its provider.")
]

HELP = """Compress a trained GPT, prove what that cost, and ship the result to ONNX Runtime.

Exit codes: 0 PASS, 1 FAIL, 2 recipe or usage error, 3 INCONCLUSIVE, 4 INVALID, 5 broken integrity, 130/143 interrupted.
"""
RECIPES, VERBS, BUNDLES, HELPERS = "Recipes", "One step by itself", "Bundles", "Help"


def main() -> None:
    """The command `demitasse`."""
    try:
        application()()
    except KeyboardInterrupt:  # before a command opened its session
        sys.exit(130)


def application() -> typer.Typer:
    """Every command."""
    from recipes.commands.benchmark_command import benchmark
    from recipes.commands.compare_command import compare_command
    from recipes.commands.gate_command import gate_command
    from recipes.commands.sensitivity_command import sensitivity_command
    from recipes.commands.verb_commands import evaluate_command, stage_command
    from recipes.stages import STAGES

    app = typer.Typer(name="demitasse", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(help=HELP)(_root)
    app.command(rich_help_panel=RECIPES)(run)
    app.command(rich_help_panel=RECIPES)(plan)
    app.command("gate", rich_help_panel=RECIPES)(gate_command())
    app.command("compare", rich_help_panel=RECIPES)(compare_command())
    for stage in STAGES.values():
        app.command(stage.kind, rich_help_panel=VERBS)(stage_command(stage))
    app.command("evaluate", rich_help_panel=VERBS)(evaluate_command())
    app.command("sensitivity", rich_help_panel=VERBS)(sensitivity_command())
    app.command(rich_help_panel=VERBS)(benchmark)
    app.command(rich_help_panel=BUNDLES)(generate)
    app.command(rich_help_panel=BUNDLES)(verify)
    for helper in (schema, methods, doctor):
        app.command(rich_help_panel=HELPERS)(helper)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"demitasse {metadata.version('demitasse')}")
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
    until_decided: Annotated[
        float,
        typer.Option(
            "--until-decided", min=0, metavar="MINUTES", help="Measure on for so long while a gate is inconclusive."
        ),
    ] = 0.0,
    track: Track = None,
    register: Register = None,
    debug: Debug = False,
) -> None:
    """Run a recipe: every stage, measured after each; then a report and a verdict."""
    from recipes.processes import Other, crew, help_recipe

    with session(debug=debug, goes_on=True, shared=True) as terminal, crew() as mates:
        from recipes.loader import load_recipe
        from recipes.outcome import show_report, show_row
        from recipes.planning import run_folder
        from recipes.runner import run as run_recipe
        from recipes.stages import STAGES
        from recipes.tracking import Tracking, conclude

        tracking = Tracking(uri=track, register=register)
        tracking.check()
        loaded = load_recipe(recipe, settings or ())
        if isinstance(mates, Other):
            mates.follow(help_recipe(loaded, STAGES))
            return
        terminal.log_to(run_folder(loaded, out))
        report = run_recipe(
            loaded,
            out=out,
            progress=terminal.progress,
            on_row=lambda row: show_row(terminal.console, row),
            crew=mates,
            until_decided=until_decided,
        )
        show_report(terminal.console, report)
        raise SystemExit(conclude(terminal, report, run_folder(loaded, out), tracking))


def plan(recipe: Recipe, out: Out = None, settings: Settings = None, debug: Debug = False) -> None:
    """Show what a run would do: its stages, what is cached, estimated memory, disk and time."""
    with session(debug=debug) as terminal:
        from recipes.loader import load_recipe
        from recipes.outcome import show_plan
        from recipes.planning import plan as plan_recipe

        show_plan(terminal.console, plan_recipe(load_recipe(recipe, settings or ()), out))


def generate(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="At most so many new tokens.")] = 100,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Draw from the k likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", max=1, help="Draw from the likeliest tokens of this sum.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    provider: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option("--provider", help="Where to run.", show_default="where the bundle was exported for"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")
    ] = None,
    debug: Debug = False,
) -> None:
    """Stream text from a bundle, through ONNX Runtime."""
    with session(debug=debug) as terminal:
        from recipes.generating import Wish, bundle_of, generate_text

        wish = Wish(
            bundle=bundle_of(bundle),
            prompt=prompt,
            tokens=tokens,
            sampling={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
            },
            provider=provider,
            threads=threads,
        )
        for piece in generate_text(wish):
            terminal.chatter.out.write(piece)
            terminal.chatter.out.flush()


def verify(bundle: Bundle, replay: Replay = True, debug: Debug = False) -> None:
    """Check that a bundle is whole (files, graph, coverage), and that it computes here what its checkpoint did."""
    with session(debug=debug) as terminal:
        from export import verify_bundle
        from recipes.generating import bundle_of
        from recipes.outcome import show_bundle, show_replay

        summary = verify_bundle(bundle_of(bundle))
        show_bundle(terminal.console, summary)
        if replay:
            from export.replay import replay as run_again

            with terminal.progress.task("parity", 1):
                figures = run_again(summary.folder, summary.provider, stated=summary.parity["replay"]["kl"])
            show_replay(terminal.console, figures)


def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of recipes, so that an editor completes and checks them."""
    with session(debug=debug) as terminal:
        from recipes.schema import json_schema

        terminal.chatter.out.write(json.dumps(json_schema(), indent=2) + "\n")


def methods(debug: Debug = False) -> None:
    """List every method that a recipe can name, with one line each."""
    with session(debug=debug) as terminal:
        from recipes.commands.methods import methods as all_methods
        from recipes.outcome import show_list

        for heading, entries in all_methods():
            show_list(terminal.console, heading, entries)


def doctor(debug: Debug = False) -> None:
    """Look at this machine: versions, CPU, GPUs, providers that really load, and what to do about the others."""
    with session(debug=debug) as terminal:
        from recipes.commands.doctor import examine
        from recipes.outcome import show_finding

        missing = 0
        for finding in examine():
            show_finding(terminal.console, finding)
            missing += finding.status == "missing"
        terminal.say(f"{missing} things to mend" if missing else "ready")
        raise SystemExit(2 if missing else 0)
