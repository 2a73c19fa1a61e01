"""Recipes that are not quite right: every one is planned, or refused with a message that can be read.

Keys and values come from all that recipes may say, in places where they may not; some YAML has anchors, merge keys,
tags and documents that no recipe needs.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import BROKEN, PASSED, REFUSED, Finding, command, forked
from campaign import Case
from mutate import ZOO, Op, apply, drawn_byte_op, drawn_file_op, drawn_path, drawn_tree_op, parsed
from tiny import NOVELS, ROOT, TIMED, finished

NAMED = """
model: gpt2
data: {calibration: calibration.txt, test: test.txt}
stages: [prune: {sparsity: 0.5, criterion: wanda}, {quantize: {embeddings: true}}, export]
evaluate:
  window: 32
  noise: {typos: 0.05, truncation: 0.25}
  labeled: [{name: who, file: rows.jsonl, text: line, answers: {he: " he", she: " she"}, limit: 16}]
  generation: [{name: lines, file: rows.csv, prompt: "{text}", reference: rest, tokens: 8}]
gate: {who/accuracy: {min_ratio: 0.5}, typos/perplexity: {max_ratio: 2}, weight_bytes: {at_most: 100000}}
seed: 3
"""
SNIPPETS = (
    "a: &a [1, 2]\n",
    "x: &x {y: 1}\ngate: {<<: *x}\n",
    "<<: {seed: 1}\n",
    "--- \nseed: 1\n",
    "%YAML 1.1\n---\n",
    "!!python/object/apply:os.system ['true']\n",
    "seed: !!int '7'\n",
    "? [a, b]\n: c\n",
    "seed: 0o17\n",
    "seed: 1\nseed: 2\n",
    "l0: &l0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"l{n}: &l{n} [{f'*l{n - 1}, ' * 9}]\n" for n in range(1, 9)),
    "- a list\n",
    "\ttabs: 1\n",
    "evaluate: {window: 1_000}\n",
    "gate: {perplexity: .nan}\n",
    "2024-01-01: x\n",
    "stages: &s [*s]\n",
    "\ufeff",
    "'unclosed\n",
)


class MutatedRecipes:
    name, count, unit, alone = "recipes", 5000, "recipes", False

    def prepare(self, place: Path) -> None:
        from recipes.engine.costs import start_seconds

        start_seconds()  # of this machine: every attempt is a fork that knows it
        finished(place)
        self.given = place
        for name, text in (("named", NAMED), ("timed", TIMED)):
            (place / f"{name}.yaml").write_text(text, encoding="utf-8")
        rows = [{"line": f"It was {index} o'clock and", "label": ("he", "she")[index % 2]} for index in range(16)]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (place / "rows.csv").write_text("text,rest\n" + "It was late,and cold\n" * 8, encoding="utf-8")
        for shipped in sorted((ROOT / "recipes").glob("*.yaml")):
            text = shipped.read_text(encoding="utf-8").replace(
                "models/novels-gpt2", str(ROOT / "recipes/models/novels-gpt2")
            )
            text = text.replace("data/novels", str(NOVELS))
            (place / shipped.name).write_text(text, encoding="utf-8")
        self.trees = {file.name: parsed(file) for file in sorted(place.glob("*.yaml"))}
        self.keys = sorted(_keys())

    def draw(self, random: Random) -> Case:
        base = random.choice(list(self.trees))
        ops = [self._op(random, base) for _ in range(random.choice((1, 1, 2, 3)))]
        ops.sort(key=lambda op: "path" not in op)  # aliases that multiply are for the product to read, not for `apply`
        way = random.choices(("plan", "gate", "set"), (8, 1, 1))[0]
        path, _ = drawn_path(random, self.trees[base])
        value = random.choice((*ZOO[:-6], "[1", "{a: 1", "&a [*a]", "!!str 1"))
        setting = f"{random.choice(('.'.join(map(str, path)), random.choice(self.keys)))}={value}"
        return {"base": base, "ops": ops, "way": way, "setting": setting.replace("\x00", "").replace("\ud800", "?")}

    def _op(self, random: Random, base: str) -> Op:
        tree = self.trees[base]
        chance = random.random()
        if chance < 0.55:
            return drawn_tree_op(random, base, tree)
        if chance < 0.72:
            path, _ = drawn_path(random, tree)
            return {
                "file": base,
                "path": list(path),
                "do": "add",
                "key": random.choice(self.keys),
                "value": random.choice(ZOO),
            }
        size = (self.given / base).stat().st_size
        if chance < 0.86:
            return drawn_byte_op(random, base, size)
        if chance < 0.97:
            put = random.choice(SNIPPETS).encode().hex()
            at = random.choice((0, size, random.randrange(size)))
            return {"file": base, "do": "bytes", "at": at, "cut": 0, "with": put}
        return drawn_file_op(random, base)

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        for file in self.given.iterdir():  # what a recipe names is beside it
            if file.is_dir() or file.suffix != ".yaml":
                (place / file.name).symlink_to(file)
        shutil.copy(self.given / case["base"], place)
        for op in case["ops"]:
            apply(op, place)
        if case["way"] == "gate":
            ended = command("gate", "short-run", "--recipe", case["base"], place=place)
            return ended.findings(range(BROKEN))
        more = ["--set", case["setting"]] if case["way"] == "set" else []
        ended = command("plan", case["base"], *more, place=place)
        found = ended.findings((PASSED, REFUSED))
        if ended.code == PASSED and not found and not more:
            found += forked(lambda: _taken(place / case["base"], case["ops"]), place).findings((PASSED,))
        return found


def _taken(file: Path, ops: list[Op]) -> None:
    """Every knob that was set in a recipe that is taken has the value that was set."""
    from recipes import load_recipe

    recipe, tree = load_recipe(file), parsed(file)
    for op in ops:
        path = op.get("path", ())
        if op["do"] == "set" and len(path) == 4 and path[0] == "stages" and op["value"] is not None:
            _, index, kind, knob = path
            planned = recipe.stages[index]
            if planned.kind == kind and tree["stages"][index][kind].get(knob) == op["value"]:
                taken = json.loads(planned.config.model_dump_json())[knob]
                assert taken == op["value"] or isinstance(taken, dict | list), (
                    f"{path}: {op['value']!r} became {taken!r}"
                )


def _keys() -> set[str]:
    """Every key that a recipe may have somewhere."""
    from recipes.config.recipe import json_schema

    found: set[str] = set()

    def walk(tree: Any) -> None:
        if isinstance(tree, dict):
            found.update(tree.get("properties", {}) if isinstance(tree.get("properties"), dict) else {})
            for inner in tree.values():
                walk(inner)
        elif isinstance(tree, list):
            for inner in tree:
                walk(inner)

    walk(json_schema())
    return found
