"""What work will take: estimates grow with what is asked, name every artifact, and nobody's clock is asserted on."""

from pathlib import Path

import pytest

from recipes.config.loader import load_recipe
from recipes.engine import costs
from recipes.engine.plan import plan

SPEED = costs.Speed(products=1e11, start=2.0)
SIZE = costs.Size(weights=6_000_000, vocabulary=4096, hidden=256, layers=6)
RECIPE = """
model: {model}
data: {{test: test.txt, calibration: test.txt}}
stages: [prune: {{sparsity: 0.2}}, quantize, export]
evaluate:
  window: 16
  windows: 100
  labeled: [{{name: mood, file: mood.jsonl, answers: {{up: " up", down: " down"}}, limit: 20}}]
benchmark: {{prompt: 8, tokens: 8, blocks: 9, stage_blocks: 3, threads: 1}}
"""


@pytest.fixture
def file(tmp_path: Path, gpt2: Path) -> Path:
    (tmp_path / "test.txt").write_text("The old house stood by the sea. " * 4000, encoding="utf-8")
    (tmp_path / "mood.jsonl").write_text('{"text": "We sang", "label": "up"}\n' * 40, encoding="utf-8")
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=gpt2), encoding="utf-8")
    return tmp_path / "r.yaml"


def test_a_plan_names_what_is_measured_and_sums_it_up(file: Path) -> None:
    found = plan(load_recipe(file))
    assert list(found.measuring) == ["baseline", "prune", "quantize", "export", "timing"]
    assert found.seconds == pytest.approx(sum(found.measuring.values()) + sum(s.estimate.seconds for s in found.steps))
    last = plan(load_recipe(file, ["evaluate.stages=last", "benchmark=null"]))
    assert list(last.measuring) == ["baseline", "export"]


def test_quality_grows_with_the_text_the_noises_and_the_items(file: Path) -> None:
    def seconds(*overrides: str, baseline: bool = False) -> float:
        return costs.quality_seconds(load_recipe(file, overrides), SIZE, SPEED, baseline=baseline)

    alone = seconds("evaluate.labeled=[]")
    assert seconds("evaluate.labeled=[]", "evaluate.windows=200") == pytest.approx(2 * alone)
    assert seconds("evaluate.labeled=[]", "evaluate.noise.typos=0.1") == pytest.approx(2 * alone)
    assert seconds("evaluate.labeled.0.limit=40") - alone == pytest.approx(2 * (seconds() - alone))
    assert seconds("evaluate.windows=null") < seconds("evaluate.windows=2500") * 1.0001  # no more than there is text
    assert seconds(baseline=True) - costs.opened("dense", SPEED) < seconds()  # it is held against nothing


def test_timing_counts_every_turn(file: Path) -> None:
    sizes: list[tuple[costs.Size, costs.FormatName]] = [(SIZE, "dense"), (SIZE, "dense"), (SIZE, "dense")]
    nine = costs.timing_seconds(load_recipe(file), sizes, SPEED)
    fewer = costs.timing_seconds(load_recipe(file, ["benchmark.stage_blocks=0"]), sizes, SPEED)
    assert nine / fewer == pytest.approx((9 + 3 + 9) / (9 + 9))
    assert costs.timing_seconds(load_recipe(file, ["benchmark=null"]), sizes, SPEED) == 0


def test_an_export_pays_for_its_parity(file: Path) -> None:
    config = load_recipe(file).stages[-1].config
    short = costs.export_seconds(config, SIZE, 256, SPEED)
    assert costs.export_seconds(config, SIZE, 4096, SPEED) > 2 * short
