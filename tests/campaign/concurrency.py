"""Several at once: runs of one store in processes and in threads, one bundle used by many threads, runs beside
`store prune` and `store verify`. Everyone ends with what each of them alone ends with.
"""

import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import PASSED, Finding, Running, command, forked
from campaign import Case
from killed_runs import PATIENCE
from tiny import SHORT, artifacts, bundle, dense, known_footprints

SPARSITIES = (0.3, 0.4, 0.5)
WAYS = ("processes", "processes", "threads", "bundle", "beside verify", "beside prune")
ADDED = 6


class Concurrency:
    name, count, unit, alone = "concurrency", 100, "meetings", True

    def prepare(self, place: Path) -> None:
        self.given = place
        dense(place)
        bundle(place)
        self.right: dict[str, Any] = {}
        for sparsity in SPARSITIES:
            name = _write(place, sparsity)
            ended = command("run", f"{name}.yaml", "--out", name, place=place, seconds=PATIENCE)
            assert ended.code == PASSED, ended.err
            self.right[name] = artifacts(place / name)

    def draw(self, random: Random) -> Case:
        ops = [{"sparsity": random.choice(SPARSITIES)} for _ in range(random.choice((2, 2, 3, 4)))]
        return {
            "way": random.choice(WAYS),
            "ops": ops,
            "shared": random.random() < 0.7,
            "sized": random.random() < 0.8,
        }

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        if case["way"] == "bundle":
            ended = forked(lambda: _one_bundle(self.given / "gpt2-bundle", len(case["ops"])), place, seconds=60)
            return [] if ended.code == PASSED else [Finding(what="wrong", text=ended.said)]
        for name in ("calibration.txt", "test.txt"):
            shutil.copy(self.given / name, place)
        shutil.copytree(self.given / "gpt2", place / "gpt2")
        names = [_write(place, op["sparsity"]) for op in case["ops"]]
        store = place / "store" / "artifacts" if case["shared"] else None
        if case["sized"]:
            for number, name in enumerate(names):
                known_footprints(self.given / name, place / f"run-{number}" if store is None else store.parent)
        found = (
            self._threads(place, names, store)
            if case["way"] == "threads"
            else self._processes(case, place, names, store)
        )
        folders = [place / f"run-{number}" for number in range(len(names))] if store is None else [store.parent]
        kept = [artifacts(folder) for folder in folders]
        wanted = [self.right[name] for name in names]
        wanted = wanted if store is None else [{name: files for one in wanted for name, files in one.items()}]
        if not found and kept != wanted:
            text = f"{[sorted(one) for one in kept]} instead of {[sorted(one) for one in wanted]}"
            found.append(Finding(what="wrong", text=f"other artifacts than of each alone: {text}"))
        return found

    def _processes(self, case: Case, place: Path, names: list[str], store: Path | None) -> list[Finding]:
        running = [
            Running(_main, place / f"{number}", _arguments(number, name, store)) for number, name in enumerate(names)
        ]
        if case["way"].startswith("beside") and store is not None:
            do = case["way"].split()[1]
            for number in range(5):
                command("store", do, store, *(["--yes"] if do == "prune" else []), place=place / f"beside-{number}")
        ended = [process.wait(PATIENCE, beside=running) for process in running]
        return [finding for one in ended for finding in one.findings((PASSED,))]

    def _threads(self, place: Path, names: list[str], store: Path | None) -> list[Finding]:
        ended = forked(lambda: _in_threads(place, names, store), place, seconds=PATIENCE)
        return [] if ended.code == PASSED else [Finding(what="wrong", text=ended.said)]


def _write(place: Path, sparsity: float) -> str:
    name = f"sparse-{sparsity}"
    (place / f"{name}.yaml").write_text(SHORT.replace("sparsity: 0.3", f"sparsity: {sparsity}"), encoding="utf-8")
    return name


def _main() -> None:
    from recipes.cli.app import main

    main()


def _arguments(number: int, name: str, store: Path | None) -> list[str]:
    shared = [] if store is None else ["--store", str(store)]
    return ["demitasse", "run", f"../{name}.yaml", "--out", f"../run-{number}", *shared]


def _in_threads(place: Path, names: list[str], store: Path | None) -> None:
    """Runs at the same time in this process; the reports pass."""
    from concurrent.futures import ThreadPoolExecutor

    from recipes import load_recipe, run

    def one(number: int, name: str) -> str | None:
        return run(load_recipe(place / f"{name}.yaml"), out=place / f"run-{number}", store=store).verdict

    with ThreadPoolExecutor(len(names)) as pool:
        verdicts = list(pool.map(one, range(len(names)), names))
    assert verdicts == ["PASS"] * len(names), verdicts


def _one_bundle(folder: Path, threads: int) -> None:
    """One opened bundle, streamed from by several threads at once: each gets what it gets alone."""
    from concurrent.futures import ThreadPoolExecutor

    from export.runtime.model import OnnxCausalLM

    model = OnnxCausalLM.open(folder)
    prompts = [list(range(5 + number, 17 + 2 * number)) for number in range(threads)]
    alone = [list(model.stream(prompt, max_new_tokens=ADDED)) for prompt in prompts]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(10):
            together = list(pool.map(lambda prompt: list(model.stream(prompt, max_new_tokens=ADDED)), prompts))
            assert together == alone, f"together {together}, alone {alone}"
