"""demitasse on a GPU, in one run of a few minutes: what can be proven and measured there and nowhere else.

    python -m benchmarks.gpu --minutes 8 [--only parity,speed] [--model SHAPE]     exit code 3: no GPU here
    python -m benchmarks.gpu --dry-run                                             the same without a GPU, tiny

    parity      exports for CUDA, proven on this GPU                     gpu_parity.py
    placement   who ran each node, against the table that tells it       gpu_placement.py
    distill     quality of a student against the tokens it learned from  gpu_distill.py
    speed       demitasse and its peers, decode and prefill              gpu_speed.py

Every section has its share of the time, a process of its own, and writes its results down as they come; one that fails
leaves its error, and the others go on. What a section does not use of its time goes to the sections after it. Results
of sections that are not run stay in the file. Needs no network.

A dry run goes as far as a machine without a GPU can: all files are made, at a tiny size; the float16 graphs run on the
CPU where the GPU would run them; tables are made of the results. It ends with 0 if every section went through.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from benchmarks.gpu_order import Request, Results
from benchmarks.gpu_parity import VERSIONS
from benchmarks.gpu_section import SECTIONS, carried_out
from benchmarks.gpu_speed import kinds_of, shape_of
from benchmarks.gpu_variants import GPU_VARIANTS
from benchmarks.machine import cuda_libraries, machine
from benchmarks.page import print_results
from benchmarks.prepare import ROOT, PrepareError, prepared
from benchmarks.results import RESULTS, teller
from benchmarks.shapes import SHAPES

NO_GPU = 3
MODELS = ("gpt2-124m", "smollm2-135m")
SHARES = {"parity": 0.2, "placement": 0.07, "distill": 0.4, "speed": 1.0}
"""Of the time that is left when the section begins, if all of them run; the last one has the rest."""
DRY_SECONDS = 7200.0
"""A dry run is not held to its time."""
HOST = ("system", "memory")
"""What may differ between two machines whose results stand in one file."""
MAKERS = 6
"""Files that are made at the same time."""


def reason_against() -> str:
    """Why nothing can be measured on a GPU here, or empty: ONNX Runtime must open a session on CUDA.

    It is asked in a process of its own, since a loader looks for libraries where it was told when it started.
    """
    command = [sys.executable, "-c", "from export.runtime.session import check_provider; check_provider('cuda')"]
    asked = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    last = (asked.stderr.strip().splitlines() or ["it died"])[-1]
    return last.removeprefix("export.runtime.session.ProviderError: ") if asked.returncode else ""


def environment() -> dict[str, str]:
    """The variables of every process that uses the GPU."""
    path = ":".join(filter(None, (os.environ.get("LD_LIBRARY_PATH"), *cuda_libraries())))
    return {"OMP_NUM_THREADS": "2"} | os.environ | {"LD_LIBRARY_PATH": path}


def main(
    only: Annotated[str, typer.Option(help=f"Only these, between commas: {', '.join(SECTIONS)}.")] = "",
    minutes: Annotated[float, typer.Option(help="How long all of it may take.")] = 8.0,
    model: Annotated[list[str], typer.Option(help="A shape of benchmarks/shapes.py, for speed.")] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="A variant of gpu_variants.py, for speed; default: all.")] = [],  # noqa: B006
    blocks: Annotated[int, typer.Option(help="Blocks of a workload at batch 1.")] = 5,
    steps: Annotated[int, typer.Option(help="Timed steps in a block.")] = 16,
    tokens: Annotated[int, typer.Option(help="Training tokens of the last student.")] = 50_000_000,
    layers: Annotated[int, typer.Option(help="Layers of the students.")] = 3,
    distill_seconds: Annotated[float, typer.Option(help="How long distill may take at most.")] = 150.0,
    work: Annotated[Path | None, typer.Option(help="Where files are kept; default: thrown away.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "gpu.json",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Without a GPU, tiny, results thrown away.")] = False,
) -> None:
    """Prove and measure demitasse on this machine's GPU."""
    sections, models = checked(only, tuple(model) or MODELS, variant)
    if not dry_run and (reason := reason_against()):
        print(f"no GPU here: {reason}")
        raise typer.Exit(NO_GPU)
    os.environ |= environment()
    with tempfile.TemporaryDirectory(prefix="demitasse-gpu-") as temporary:
        folder = (work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if dry_run:
            out = folder / "gpu.json"
        request = Request(
            work=folder,
            tell=teller("gpu"),
            seconds=DRY_SECONDS if dry_run else 60 * minutes,
            dry=dry_run,
            models=models,
            variants=tuple(variant),
            blocks=blocks,
            steps=steps,
            tokens=tokens,
            layers=layers,
        )
        errors = measure(sections, request, out, distill_seconds)
        print_results(Results(out).content)
    print("\n".join(f"{name}: {error or 'done'}" for name, error in errors.items()))
    raise typer.Exit(int(dry_run and any(errors.values())))


def checked(only: str, models: tuple[str, ...], variants: Iterable[str] = ()) -> tuple[list[str], tuple[str, ...]]:
    """The sections in their order, and the models.

    Raises:
        typer.BadParameter: there is none of that name.
    """
    wanted = [name for name in only.split(",") if name]
    for given, option, known in (
        (wanted, "--only", SECTIONS),
        (models, "--model", SHAPES),
        (variants, "--variant", GPU_VARIANTS),
    ):
        for name in given:
            if name not in known:
                raise typer.BadParameter(f"{option} {name}: expected one of {', '.join(known)}")
    return [name for name in SECTIONS if not wanted or name in wanted], models


def measure(sections: Iterable[str], request: Request, out: Path, distill_seconds: float = 150.0) -> dict[str, str]:
    """Run the sections; the error of each, or empty."""
    sections, errors = list(sections), dict[str, str]()
    out.parent.mkdir(parents=True, exist_ok=True)
    results = begun(Results(out), machine(request.device))
    results.keep()
    with ThreadPoolExecutor(MAKERS) as pool:
        files = Files(pool, request, sections)
        for place, name in enumerate(sections):
            files.wait_for(name)
            seconds = share_of(sections[place:], request.left())
            if name == "distill" and not request.dry:
                seconds = min(seconds, distill_seconds)
            request.tell(f"{name}: {seconds:.0f} s")
            asked = {**vars(request), "seconds": seconds, "started": time.monotonic()}
            errors[name] = carried_out(name, Request(**asked), out)
            request.tell(f"{name}: {errors[name] or 'done'}")
        pool.shutdown(wait=False, cancel_futures=True)
    results = Results(out)
    results.content["seconds"] = request.seconds - request.left()
    results.keep()
    return errors


def begun(results: Results, here: dict[str, str]) -> Results:
    """Results of this machine; those of another one are put aside, beside the file."""
    there = results.content.get("machine", {})
    if any(there.get(key) != value for key, value in here.items() if key not in HOST):
        if results.out.is_file():
            os.replace(results.out, results.out.with_suffix(".earlier.json"))
        results.content = {"sections": {}}
    results.content |= {"kind": "gpu", "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": here}
    return results


def share_of(sections: list[str], left: float) -> float:
    """Seconds for the first of the sections that are still to run."""
    shares = [SHARES[name] for name in sections]
    return left if len(sections) == 1 else left * min(1.0, shares[0] / min(1.0, sum(shares)))


class Files:
    """What the sections run, made beside them: of the embedded teacher first, of the models that are timed last."""

    def __init__(self, pool: ThreadPoolExecutor, request: Request, sections: list[str]) -> None:
        self.request = request
        self.made: dict[str, list[Future[None]]] = {name: [] for name in SECTIONS}
        if {"parity", "placement"} & set(sections):
            embedded = [pool.submit(self._embedded, kind) for kind in VERSIONS.values()]
            self.made |= {"parity": embedded, "placement": embedded}
        if "speed" in sections:
            for model in request.models:
                checkpoint = pool.submit(self._shape, model)
                self.made["speed"] += [
                    checkpoint,
                    *(
                        pool.submit(self._of_model, model, kind, checkpoint)
                        for kind in kinds_of(model, self.request.variants)
                    ),
                ]

    def wait_for(self, section: str) -> None:
        """Wait until a section's files are made, or cannot be made, or time is over."""
        if self.made[section]:
            self.request.tell(f"files of {section}")
        wait(self.made[section], timeout=max(0.0, self.request.left()))

    def _embedded(self, kind: str) -> None:
        with suppress(PrepareError):  # the section tries again, and says what is wrong
            prepared(kind, self.request.embedded, self.request.work / "embedded", "cuda")

    def _shape(self, model: str) -> None:
        shape_of(self.request.work, model, dry=self.request.dry)

    def _of_model(self, model: str, kind: str, checkpoint: "Future[None]") -> None:
        checkpoint.result()
        work = self.request.work / model
        with suppress(PrepareError):
            prepared(kind, work / "checkpoint", work, "cuda")


if __name__ == "__main__":
    typer.run(main)
