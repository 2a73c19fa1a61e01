"""A small run that is whole: a recipe with named evaluations and noise, exported, measured before and after.

`write(place)` leaves the recipe (named.yaml) with its files; `finish(place, out)` runs it. The fixtures `named_recipe`
and `named_run` of conftest.py share what they leave.
"""

import json
from pathlib import Path

import pytest

from evaluation.report import Report

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
NOVELS = RECIPES / "data" / "novels"
RECIPE = f"""
model: {RECIPES / "models" / "novels-gpt2"}
data: {{test: test.txt, calibration: calibration.txt}}
stages: [export]
evaluate:
  window: 64
  windows: 16
  stride: 48
  bos: true
  noise: {{typos: 0.05, truncation: 0.25}}
  labeled:
    - {{name: pronoun, file: pronouns.jsonl, text: line, answers: {{he: " he", she: " she"}}, limit: 16}}
  generation:
    - {{name: lines, file: lines.csv, prompt: "{{text}}", reference: rest, tokens: 8}}
gate:
  perplexity: {{max_ratio: 1.2}}
  weight_bytes: {{max_ratio: 1.1}}
  pronoun/accuracy: {{min_ratio: 0.5}}
  lines/repetition: {{max_increase: 0.9}}
  typos/perplexity: {{max_ratio: 1.1}}
"""


def write(place: Path) -> None:
    """Leave the recipe and its files in a folder of their own."""
    place.mkdir()
    text = (NOVELS / "test.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if 120 < len(line) < 400][:60]
    rows = [{"line": line[:60].rstrip(), "label": ("he", "she")[index % 2]} for index, line in enumerate(lines[:30])]
    (place / "pronouns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [(line[:50].replace('"', ""), line[50:100].replace('"', "")) for line in lines[:8]]
    (place / "lines.csv").write_text(
        "text,rest\n" + "".join(f'"{text}","{rest}"\n' for text, rest in texts), encoding="utf-8"
    )
    for name, source in (("test", "test"), ("calibration", "valid")):
        text = (NOVELS / f"{source}.txt").read_text(encoding="utf-8").replace("<|endoftext|>", "")
        documents = [text[start : start + 900] for start in range(0, 18_000, 900)]
        (place / f"{name}.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    (place / "named.yaml").write_text(RECIPE, encoding="utf-8")


def finish(place: Path, out: Path) -> Report:
    """Run the recipe of a folder."""
    from recipes.config.loader import load_recipe
    from recipes.engine.runner import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.measure.footprint.probe", lambda *_, **__: 5)  # a process each, tested elsewhere
        return run(load_recipe(place / "named.yaml"), out=out)
