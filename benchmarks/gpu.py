"""demitasse and its peers on CUDA: the variants of variants.py that run there, timed as grid.py says, on float16
activations.

    python -m benchmarks.gpu            exit code 0: the table;  3: no GPU here, and nothing was measured

Before anything is timed, our bundles prove on this GPU that they compute what the checkpoint computes and that every
node ran there (the export refuses them otherwise); both proofs are in the results. Our runtime captures a step as a
CUDA graph, torch.compile runs in the mode that does, and onnxruntime-genai has a variant with them and one without.
"""

import sys
from pathlib import Path
from typing import Annotated

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from benchmarks.grid import Settings, workloads_of
from benchmarks.page import finish
from benchmarks.peers import DEFAULT_MODELS, check_names, compare
from benchmarks.results import RESULTS
from benchmarks.variants import PEERS, VARIANTS

NO_GPU = 3


def reason_against() -> str:
    """Why nothing can be measured on a GPU here, or empty: ONNX Runtime must open a session on CUDA."""
    from export.runtime.session import ProviderError, check_provider

    try:
        check_provider("cuda")
    except ProviderError as error:
        return str(error)
    return ""


def main(
    model: Annotated[list[str], typer.Option(help="A shape of benchmarks/shapes.py or a checkpoint's folder.")] = [],  # noqa: B006
    blocks: Annotated[int, typer.Option(help="Blocks of a workload at batch 1.")] = 9,
    steps: Annotated[int, typer.Option(help="Timed steps in a block.")] = 32,
    work: Annotated[Path | None, typer.Option(help="Where the variants' files are kept; default: thrown away.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "gpu.json",
) -> None:
    """Compare demitasse with its peers on this machine's GPU."""
    models = tuple(model) or DEFAULT_MODELS
    check_names(models)
    reason = reason_against()
    if reason:
        print(f"no GPU here: {reason}")
        raise typer.Exit(NO_GPU)
    variants = tuple(name for name in PEERS if "cuda" in VARIANTS[name].devices)
    workloads = workloads_of((128, 900), (128, 512), (1, 4, 8))
    settings = Settings(workloads=workloads, blocks=blocks, steps=steps, loads=3, threads=2, device="cuda")
    finish(compare(models, variants, settings, work, out), out)


if __name__ == "__main__":
    typer.run(main)
