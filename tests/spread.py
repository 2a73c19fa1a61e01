"""Stages on several processes without a recipe around them: what the launcher starts in test_distributed.py.

spread.py FOLDER    FOLDER/orders.json: [{kind, knobs}, ...], what to run, one after the other
                    FOLDER/<number>/{out, scratch}, FOLDER/<number>.json: what each leaves, and its facts
"""

import json
import sys
from pathlib import Path
from typing import Any

from compress import Facts, Stage, StageConfig, StageInput, TextSource
from compress.stage import StageError
from compress.training.distributed import barrier, together
from compress.training.launch import launch
from recipes.processes import Other, crew, run_along
from recipes.session import session
from recipes.stages import STAGES


class FailConfig(StageConfig):
    """Which process fails, and when."""

    rank: int
    early: bool


def fail(config: FailConfig, given: StageInput) -> Facts:
    """One process gives up before the others can open a group with it, or inside of the group."""
    fails = launch().rank == config.rank
    if fails and config.early:
        raise StageError("this process has never begun")
    with together("cpu"):
        if fails:
            raise StageError("this process has lost heart")
        barrier()
    return {}


FAIL = Stage(
    kind="fail",
    summary="fail on one process",
    version=1,
    config=FailConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=fail,
    parallel=True,
)


def main(folder: Path) -> None:
    task = json.loads((folder / "orders.json").read_text(encoding="utf-8"))
    kinds: dict[str, Stage[Any]] = {**STAGES, "fail": FAIL}
    chosen = [(kinds[order["kind"]], kinds[order["kind"]].config(**order["knobs"])) for order in task["orders"]]
    texts = {name: TextSource(file=Path(task["text"])) for name in ("train_text", "calibration_text")}

    def given(number: int, out: Path) -> StageInput:
        model = Path(task["model"])
        return StageInput(source=model, teacher=model, out=out, scratch=folder / str(number) / "scratch", **texts)

    with session(debug=False, shared=True), crew() as mates:
        if isinstance(mates, Other):
            mates.follow(lambda number, asked: run_along(*chosen[number], given(number, asked.out)))
            return
        mates.meet(folder)
        for number, (stage, config) in enumerate(chosen):
            mine = given(number, folder / str(number) / "out")
            for place in (mine.out, mine.scratch):
                place.mkdir(parents=True)
            with mates.share(number, mine):
                facts = stage.run(config, mine)
            (folder / f"{number}.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
