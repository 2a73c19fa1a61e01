"""What work will take: estimates grow with what is asked, name every artifact, and nobody's clock is asserted on."""

from pathlib import Path

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from compress import Checkpoint, TextSource
from compress.stage import StageInput
from evaluation.latency.timing import FEWEST_PREFILLS
from evaluation.stopping_rule import blocks_at_looks
from export.config import ExportConfig
from recipes.config.loader import load_recipe
from recipes.config.stages import STAGES
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


def test_a_speed_is_the_mean_over_its_sample_and_not_a_moments() -> None:
    now, calls = 0.0, 0

    def call() -> None:  # half of the time somebody else has the processor
        nonlocal now, calls
        calls += 1
        now += 0.03 if calls % 20 < 10 else 0.01

    assert costs.seconds_of(call, 4.0, lambda: now) == pytest.approx(0.02, rel=0.05)
    assert costs.seconds_of(call, 0.0, lambda: now) > 0  # one at least


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


def test_timing_that_a_gate_ends_is_told_to_its_second_look_and_to_its_last_block(file: Path) -> None:
    sizes: list[tuple[costs.Size, costs.FormatName]] = [(SIZE, "dense"), (SIZE, "dense")]
    gated = load_recipe(file, ["benchmark.blocks=15", "gate.decode_latency.max_ratio=0.5"])
    second, last = (costs.timing_seconds(gated, sizes, SPEED, undecided=undecided) for undecided in (False, True))
    assert second / last == pytest.approx(blocks_at_looks(15)[1] / 15)
    ungated = load_recipe(file, ["benchmark.blocks=15", "gate.perplexity.max_ratio=1.1"])  # which no block decides
    assert costs.timing_seconds(ungated, sizes, SPEED) == pytest.approx(last)


def test_a_turn_holds_its_warm_up_and_every_prompt(file: Path) -> None:
    sizes: list[tuple[costs.Size, costs.FormatName]] = [(SIZE, "dense")]

    def of_prompts(length: int, speed: costs.Speed) -> float:
        recipe = load_recipe(file, [f"benchmark.prompt={length}", "benchmark.blocks=3"])
        return costs.timing_seconds(recipe, sizes, speed) / 3 / (length * costs.token_seconds(SIZE, speed))

    fast, slow = costs.Speed(products=1e15, start=0.0), costs.Speed(products=1e7, start=0.0)
    rest = of_prompts(64, fast) - 2 * of_prompts(128, fast)  # what does not hang on the prompt
    assert of_prompts(64, slow) == pytest.approx(1 + costs.WARM_UPS + FEWEST_PREFILLS, rel=1e-2)
    assert rest == pytest.approx(-(1 + costs.WARM_UPS + 2 * costs.PREFILLS), rel=1e-2)


def test_an_export_pays_for_its_parity(file: Path) -> None:
    config = load_recipe(file).stages[-1].config
    assert isinstance(config, ExportConfig)

    def seconds(context: int, *, quantized: bool = True, **knobs: object) -> float:
        asked = config.model_copy(update=knobs)
        return costs.parity_seconds(asked, SIZE, context, SPEED, quantized=quantized)

    assert seconds(4096) > 2 * seconds(256)
    assert seconds(256, quantized=False) < seconds(256) < seconds(256, cache="int8")
    assert seconds(256, accuracy_level=0) == seconds(256, quantized=False)  # no activation is rounded


def test_a_stage_pays_for_the_libraries_that_its_knobs_import() -> None:
    prune, quantize, export = (STAGES[kind] for kind in ("prune", "quantize", "export"))
    assert costs.imports(prune, prune.config(sparsity=0.5)) == set()
    assert costs.imports(quantize, quantize.config()) == {"bitsandbytes"}
    assert costs.imports(quantize, quantize.config(scheme="int8_group")) == set()
    assert {"mobius-onnx", "onnx"} <= costs.imports(export, export.config())
    assert len({"onnxruntime", "onnxruntime-gpu"} & costs.imports(export, export.config())) == 1


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("prune", {"sparsity": 0.5}),
        ("prune", {"sparsity": 0.5, "criterion": "wanda"}),
        ("prune", {"sparsity": 0.5, "criterion": "wanda", "allocation": "sensitivity"}),
        ("slim", {"ffn": 0.5}),
        ("slim", {"layers": 1, "depth_by": "perplexity"}),
        ("quantize", {"scheme": "int8_group"}),
        ("quantize", {"scheme": "int8_group", "method": "gptq"}),
        ("quantize", {"scheme": "int4", "average_bits": 5}),
    ],
    ids=str,
)
def test_the_tokens_that_a_stage_tells_are_those_that_run(
    kind: str, knobs: dict[str, object], gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    """Those that go through its blocks are counted; what is done beside a pass counts as a pass, so as much again at
    most.
    """
    stage = STAGES[kind]
    config = stage.config(**knobs, **({"rows": 8, "length": 32} if stage.inputs_read(stage.config(**knobs)) else {}))
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    calibration = TextSource(file=text_file)
    counted = 0

    def count(module: torch.nn.Module, given: tuple[object, ...]) -> None:
        nonlocal counted
        if isinstance(module, GPT2MLP) and isinstance(given[0], torch.Tensor):
            counted += given[0].shape[:-1].numel()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        stage.run(config, StageInput(source=gpt2, out=out, scratch=scratch, calibration_text=calibration))
    finally:
        hook.remove()
    layers = Checkpoint(gpt2).config["n_layer"]
    told = stage.tokens_run(config, 32, layers)
    assert bool(told) == bool(counted) == bool(stage.inputs_read(config))
    assert counted / layers * 0.5 <= told <= counted / layers * 4
