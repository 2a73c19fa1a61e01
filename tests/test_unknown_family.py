"""Slimming families that no table knows: what is traced and proven, what slimmed models compute, what is refused."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import exported
from slim_models import anatomy, loud
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from compress import SlimConfig, StageError, StageInput, TextSource, inspect_checkpoint
from compress.checkpoints.loading import load_model
from compress.models.block_linears import blocks
from compress.models.calibration import calibration_rows
from compress.models.families import FAMILIES, Shape, Size
from compress.stage import Silent
from compress.structured.depth import Stack, least_missed
from compress.structured.masking import cut_equals_masked
from compress.structured.stage import run
from compress.structured.unknown_family import unknown_family
from recipes.formats.macs import macs_of_checkpoint

Make = Callable[..., Path]
IDS_BT = torch.arange(20).reshape(2, 10) * 7 % 300
THREE: dict[str, Any] = {"num_hidden_layers": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", THREE),
    "granite": ("granite", {**THREE, "attention_bias": True, "mlp_bias": True}),
    "olmo2": ("olmo2", THREE),
    "phi": (
        "phi",
        {**THREE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3": ("phi3", THREE),
    "stablelm": ("stablelm", {**THREE, "use_qkv_bias": True}),
    "starcoder2": ("starcoder2", THREE),
}
FROZEN: dict[str, set[Size]] = {"gemma": {"hidden"}, "olmo2": {"heads"}}
"""Gemma multiplies its embedding by the root of the width; OLMo 2 has a norm over all heads together."""
KNOBS: dict[Size, Any] = {"heads": 2, "ffn": 0.5, "hidden": 0.5, "layers": 2}
CASES = [(name, size) for name in MODELS for size in KNOBS if size not in FROZEN.get(name, set())]
MANY = (
    "apertus",
    "arcee",
    "bloom",
    "cohere",
    "cohere2",
    "cwm",
    "ernie4_5",
    "exaone4",
    "falcon",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt_bigcode",
    "gptj",
    "helium",
    "ministral",
    "ministral3",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo3",
    "seed_oss",
    "smollm3",
)
QUICK = ("gemma", "phi3", "stablelm", "starcoder2")
"""Families whose every test runs whenever tests run."""
EXPORTED = ("phi3", "gemma", "starcoder2", "stablelm", "phi", "granite", "olmo2")


@pytest.fixture(scope="module")
def models(make_checkpoint: Make) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        kind, changes = MODELS[name]
        return made.setdefault(name, loud(make_checkpoint(kind, **changes)) if name not in made else made[name])

    return get


@pytest.fixture
def slim(text_file: Path, tmp_path: Path) -> Callable[..., tuple[PreTrainedModel, dict[str, Any]]]:
    """`slim(folder, ffn=0.5)`: the slimmed model, reloaded from `tmp_path / "out"`, and what the stage told."""
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    text = TextSource(file=text_file)
    given = StageInput(source=None, out=tmp_path / "out", scratch=tmp_path / "scratch", calibration_text=text)

    def call(source: Path, **knobs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        metadata = run(SlimConfig(**{"rows": 2, "length": 16, **knobs}), dataclasses.replace(given, source=source))
        return load_model(given.out), metadata

    return call


def config_of(kind: str, shapes: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(kind, **{**shapes, "vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0, **changes})


def shape_in(kind: str) -> dict[str, Any]:
    from conftest import SHAPES

    return SHAPES[kind]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS_BT, use_cache=False).logits
    return found


# --- what a slimmed model is


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.thorough) for case in CASES],
)
def test_shapes_follow_the_config(name: str, size: Size, models: Callable[[str], Path], slim: Any) -> None:
    source = models(name)
    before = anatomy(load_model(source))[1]
    small, metadata = slim(source, importance="weights", repair=False, **{size: KNOBS[size]})
    after = anatomy(small)[1]
    wanted = KNOBS[size] if isinstance(KNOBS[size], int) else KNOBS[size] * getattr(before, size)
    assert getattr(after, size) == wanted < getattr(before, size)
    assert metadata["parameters"]["after"] == sum(parameter.numel() for parameter in small.parameters())
    assert set(metadata["traced"]["frozen"]) == FROZEN.get(name, set())
    assert torch.isfinite(logits(small)).all()


def kept_rows(small: torch.Tensor, large: torch.Tensor) -> list[int]:
    """Which rows of a matrix another one consists of."""
    return [int((large == row).all(dim=1).nonzero()) for row in small]


@torch.no_grad()
def mask_half(masked: Any, small: Any, output: str) -> None:
    """Zero in `masked` the inputs of each block's `output` that `small` is without: half of them."""
    for (_, narrow), (_, wide) in zip(blocks(small), blocks(masked), strict=True):
        kept = kept_rows(narrow.get_submodule(output).weight.T, wide.get_submodule(output).weight.T)
        gone = torch.ones(wide.get_submodule(output).in_features, dtype=torch.bool)
        gone[kept] = False
        assert gone.sum() == len(kept)
        wide.get_submodule(output).weight[:, gone] = 0


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.thorough) for n in MODELS])
def test_removed_neurons_equal_masked_neurons(name: str, models: Callable[[str], Path], slim: Any) -> None:
    """The masked model is made of the source and of what the files hold, with no table of axes."""
    masked = load_model(models(name))
    small, _ = slim(models(name), ffn=0.5, importance="weights", repair=False)
    mask_half(masked, small, anatomy(masked)[0].ffn_output)
    torch.testing.assert_close(logits(small), logits(masked), rtol=1e-4, atol=1e-4)
    assert (logits(small) - logits(load_model(models(name)))).abs().max() > 0.01


@pytest.mark.parametrize("name", ["gemma", "phi3", "starcoder2"])
def test_removed_heads_equal_masked_heads(name: str, models: Callable[[str], Path], slim: Any) -> None:
    masked = load_model(models(name))
    small, _ = slim(models(name), heads=2, importance="weights", repair=False)
    mask_half(masked, small, anatomy(masked)[0].attention_output)
    torch.testing.assert_close(logits(small), logits(masked), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.thorough) for n in MODELS])
def test_removed_layers_equal_layers_passed_by(name: str, models: Callable[[str], Path], slim: Any) -> None:
    passing = load_model(models(name))
    small, metadata = slim(models(name), layers=2)
    (gone,) = {0, 1, 2} - set(metadata["kept_layers"])
    blocks(passing)[gone][1].register_forward_hook(
        lambda module, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
    )
    torch.testing.assert_close(logits(small), logits(passing), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_plain_transformers_loads_them_and_gives_the_same_logits(
    models: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """In a process without this project."""
    sums = []
    for name in MODELS:
        (tmp_path / name).mkdir()
        knobs = {size: width for size, width in KNOBS.items() if size not in FROZEN.get(name, set())}
        config = SlimConfig(rows=2, length=16, **{**knobs, **({} if name != "stablelm" else {"hidden": None})})
        text = TextSource(file=text_file)
        run(config, StageInput(source=models(name), out=tmp_path / name, scratch=tmp_path, calibration_text=text))
        sums.append(float(logits(load_model(tmp_path / name)).double().sum()))
    code = f"""
import sys
for name in ("compress", "export", "evaluation", "recipes", "torch_pruning"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
for folder in {[str(tmp_path / name) for name in MODELS]!r}:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        print(float(model(torch.tensor({IDS_BT.tolist()!r})).logits.double().sum()))
"""
    answer = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert [float(line) for line in answer.stdout.split()] == pytest.approx(sums, rel=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "phi3" else pytest.mark.thorough) for name in EXPORTED]
)
def test_a_slim_model_exports_with_parity(
    name: str, models: Callable[[str], Path], slim: Any, text_file: Path, tmp_path: Path
) -> None:
    slim(models(name), ffn=0.5, layers=2, **({"heads": 2} if "heads" not in FROZEN.get(name, set()) else {}))
    assert (exported(tmp_path / "out", tmp_path / "bundle", text_file) / "model.onnx").is_file()


def test_what_export_does_not_know_is_refused_there_by_name(
    make_checkpoint: Make, slim: Any, text_file: Path, tmp_path: Path
) -> None:
    slim(loud(make_checkpoint("bloom")), layers=1)
    with pytest.raises(StageError, match="this model of type 'bloom' cannot be exported"):
        exported(tmp_path / "out", tmp_path / "bundle", text_file)


@pytest.mark.parametrize("name", ["granite", "gemma"])
def test_losses_without_a_layer_are_the_models_own(name: str, models: Callable[[str], Path], text_file: Path) -> None:
    """With the scale of the logits, and of the embedding."""
    folder = models(name)
    from compress.checkpoints.folder import load_tokenizer

    ids_NT = calibration_rows(TextSource(file=text_file), load_tokenizer(folder), 2, 16)
    _, gone = least_missed(Stack(folder, ids_NT), 2, Silent())
    with torch.no_grad():
        logits_NTV = load_model(folder)(torch.from_numpy(ids_NT), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits_NTV[:, :-1].flatten(0, 1), torch.from_numpy(ids_NT)[:, 1:].flatten()
    )
    assert gone[0]["loss_before"] == pytest.approx(float(loss), rel=1e-5)


# --- what is found


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_trace_finds_what_the_table_says(kind: str) -> None:
    """Of families that the table knows."""
    table, found = FAMILIES[kind], unknown_family(config_of(kind, shape_in(kind)))
    assert found.inside.items() <= table.inside.items()
    assert found.outside.items() <= table.outside.items()
    for field in ("blocks", "attention_output", "ffn_output", "norms", "final_norm", "square", "divides", "frozen"):
        assert getattr(found, field) == getattr(table, field), field


def test_packed_layouts_are_found() -> None:
    found = unknown_family(config_of("phi3", shape_in("phi3")))
    assert found.inside["self_attn.qkv_proj.weight"] == ("stacked", "hidden")
    assert found.inside["mlp.gate_up_proj.weight"] == ("gated", "hidden")


def test_two_heads_to_a_key_value_head_do_not_keep_the_trace_from_ending() -> None:
    config = config_of("qwen3", shape_in("qwen3"), num_attention_heads=16, num_key_value_heads=8)
    assert unknown_family(config).inside["self_attn.k_proj.weight"] == ("key_value", "hidden")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", MANY)
def test_many_families_slim_in_all_that_is_not_frozen(kind: str, make_checkpoint: Make, slim: Any) -> None:
    folder = loud(make_checkpoint(kind))
    family, shape = anatomy(load_model(folder))
    for size in ("ffn", "heads", "hidden", "layers"):
        if size in family.frozen:
            with pytest.raises(StageError, match=f"{size} cannot change in this architecture: .*MaskSelector among"):
                slim(folder, **{size: 0.5})
    free = {size: 0.5 for size in ("ffn", "hidden", "layers") if size not in family.frozen}
    small, _ = slim(folder, **free)
    assert all(getattr(anatomy(small)[1], size) < getattr(shape, size) for size in free)


def test_the_page_says_what_of_which_family_cannot_change() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8").partition("## Slimming")[2]
    for kind in (*{kind for kind, _ in MODELS.values()}, *MANY):
        assert f"`{kind}`" in page, kind


# --- what is refused


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("gemma", {"hidden": 0.5}, "hidden cannot change in this architecture: something beside .* number of channels"),
        (
            "olmo2",
            {"kv_heads": 1},
            "kv_heads cannot change .* number of heads.* MaskSelector among ffn, hidden, layers",
        ),
        ("gemma", {"target": {"parameters": 0.5}}, "hidden cannot change .* MaskSelector among ffn, heads, layers"),
    ],
)
def test_frozen_sizes_are_refused_before_any_work(
    name: str, knobs: dict[str, Any], message: str, models: Callable[[str], Path], slim: Any, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        slim(models(name), **knobs)
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mixtral", "'mixtral' is not one of gpt2, .*qwen3, and it is a mixture of experts"),
        ("mamba", "'mamba' is not one of .* and its config has no heads"),
        ("codegen", "'codegen' is not one of .* and no tiny model of it runs"),
        ("openai-gpt", "'openai-gpt' is not one of .* and it has no norm after its last block"),
    ],
)
def test_families_that_cannot_be_slimmed_are_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        unknown_family(config_of(kind, shape_in(kind)))


def test_a_wrong_table_does_not_pass_for_masked(models: Callable[[str], Path]) -> None:
    """Queries, keys and values taken for packed head by head, where they are stacked."""
    model = load_model(models("phi3"))
    family, shape = anatomy(model)
    alike = dataclasses.replace(shape, kv_heads=shape.heads)
    config = type(model.config).from_dict({**model.config.to_dict(), "num_key_value_heads": shape.heads})
    from compress.structured.tiny_model import tiny_model

    whole = tiny_model(config)
    assert cut_equals_masked(whole, family, alike, "heads")
    wrong = {
        name: tuple("interleaved" if axis == "stacked" else axis for axis in axes)
        for name, axes in family.inside.items()
    }
    assert not cut_equals_masked(whole, dataclasses.replace(family, inside=wrong), alike, "heads")


# --- what else counts them


@pytest.mark.parametrize("kind", ["gemma", "phi3", "stablelm", "olmo2", "falcon", "gpt_bigcode", "mpt"])
def test_multiply_accumulates_are_those_of_the_linears_that_run(kind: str, make_checkpoint: Make) -> None:
    folder = make_checkpoint(kind)
    model = load_model(folder)
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, output: seen.append(module.weight.numel()))
    logits(model)
    assert macs_of_checkpoint(folder, 0) == sum(seen)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * width
    assert macs_of_checkpoint(folder, 10) - macs_of_checkpoint(folder, 0) == 10 * attention
    assert inspect_checkpoint(folder).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_shapes_of_stacked_and_gated_dimensions() -> None:
    shape = Shape(layers=1, hidden=32, heads=4, kv_heads=2, ffn=24, head_dim=8)
    assert (shape.width("stacked"), shape.width("gated")) == (32 + 2 * 16, 48)
