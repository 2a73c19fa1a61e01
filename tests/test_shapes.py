"""Which widths are possible, which are taken for a target, and what is said where none is."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from compress.models.families import FAMILIES, Shape
from compress.stage import StageError
from compress.structured.config import SlimConfig
from compress.structured.shapes import (
    Parameters,
    asked_shape,
    fit_latency,
    fit_parameters,
    head_pairs,
    path,
    spread,
    thin,
)

GPT2_SMALL = Shape(layers=12, hidden=768, heads=12, kv_heads=12, ffn=3072, head_dim=64)
SMOLLM2 = Shape(layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, head_dim=64)
QWEN3 = Shape(layers=28, hidden=1024, heads=16, kv_heads=8, ffn=3072, head_dim=128)
VOCABULARY = 50257


def parameters(family: str) -> Parameters:
    """The weights of a family as the table names them: biases, norms and all."""
    table = FAMILIES[family]
    outside = {name: axes for name, axes in table.outside.items() if name != "lm_head.weight"}
    size = {"fixed": VOCABULARY}
    entries = [
        tuple((axes, tuple(size.get(axis, 1) for axis in axes)) for axes in group.values())
        for group in (table.inside, outside)
    ]
    return Parameters(*entries)


@pytest.mark.parametrize(
    ("family", "source", "asked", "expected"),
    [
        ("gpt2", GPT2_SMALL, {"heads": 10}, {"heads": 10, "kv_heads": 10, "hidden": 640}),
        ("gpt2", GPT2_SMALL, {"hidden": 0.75, "ffn": 0.7}, {"heads": 9, "kv_heads": 9, "hidden": 576, "ffn": 2176}),
        ("gpt2", GPT2_SMALL, {"layers": 0.5}, {"layers": 6}),
        ("opt", GPT2_SMALL, {"heads": 8, "hidden": 512}, {"heads": 8, "kv_heads": 8, "hidden": 512}),
        ("llama", SMOLLM2, {"heads": 6}, {"heads": 6, "kv_heads": 3}),
        ("llama", SMOLLM2, {"kv_heads": 2}, {"heads": 6, "kv_heads": 2}),
        ("llama", SMOLLM2, {"heads": 6, "hidden": 0.75}, {"heads": 6, "kv_heads": 3, "hidden": 480}),
        ("llama", SMOLLM2, {"kv_heads": 1, "heads": 2}, {"heads": 2, "kv_heads": 1}),
        ("qwen3", QWEN3, {"heads": 0.5}, {"heads": 8, "kv_heads": 8}),
        ("qwen3", QWEN3, {"heads": 12, "hidden": 1000}, {"heads": 12, "kv_heads": 6, "hidden": 1000}),
        ("mistral", QWEN3, {"kv_heads": 5}, {"heads": 10, "kv_heads": 5}),
    ],
)
def test_widths_that_are_asked_for(
    family: str, source: Shape, asked: dict[str, float], expected: dict[str, int]
) -> None:
    assert asked_shape(source, FAMILIES[family], asked) == replace(source, **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "source", "asked", "message"),
    [
        ("gpt2", GPT2_SMALL, {"hidden": 700}, "hidden: expected one of 64, 128, 192, .*768, got 700"),
        ("gpt2", GPT2_SMALL, {"heads": 13}, "heads: expected one of 1, 2, .*12, got 13"),
        ("gpt2", GPT2_SMALL, {"heads": 6, "hidden": 512}, "hidden: expected 384 beside 6 heads"),
        ("gpt2", GPT2_SMALL, {"kv_heads": 6}, "kv_heads: this architecture has one key-value head per head"),
        (
            "gpt2",
            GPT2_SMALL,
            {"ffn": 1001},
            "ffn: expected one of the 384 possible .* up to 3072, such as .*1000.* got 1001",
        ),
        ("gpt2", GPT2_SMALL, {"layers": 13}, "layers: expected one of 1, .* 12, got 13"),
        ("llama", SMOLLM2, {"heads": 5}, "heads: expected one of 1, 2, 3, 4, 6, 9, got 5"),
        ("llama", SMOLLM2, {"hidden": 500}, "hidden: expected one of 72, 144, 216, 288, 360, 432, 504, 576, got 500"),
        ("llama", SMOLLM2, {"kv_heads": 2, "heads": 3}, "heads: expected one of 2, 4, 6, got 3"),
        ("qwen3", QWEN3, {"heads": 9}, "heads: expected one of .*8, 10, 12, .*got 9"),
    ],
)
def test_impossible_widths_name_the_possible_ones(
    family: str, source: Shape, asked: dict[str, int], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        asked_shape(source, FAMILIES[family], asked)  # type: ignore[arg-type]


def test_key_value_heads_never_gain_query_heads() -> None:
    for source in (SMOLLM2, QWEN3, GPT2_SMALL):
        queries = source.heads // source.kv_heads
        pairs = head_pairs(source)
        assert pairs[source.heads] == source.kv_heads
        for heads, kv_heads in pairs.items():
            assert heads % kv_heads == 0
            assert heads // kv_heads <= queries
            assert kv_heads <= source.kv_heads


@pytest.mark.parametrize(("family", "source"), [("gpt2", GPT2_SMALL), ("llama", SMOLLM2), ("qwen3", QWEN3)])
@pytest.mark.parametrize(
    "axes", [("ffn", "heads", "hidden"), ("ffn",), ("layers",), ("ffn", "heads", "hidden", "layers")]
)
def test_a_parameter_target_is_met_from_below(family: str, source: Shape, axes: tuple[str, ...]) -> None:
    table, count = FAMILIES[family], parameters(family).count
    for ratio in (0.85, 0.7):
        if axes == ("ffn",) and ratio < 0.75:
            continue
        shape = fit_parameters(source, table, axes, ratio, count)  # type: ignore[arg-type]
        limit = ratio * count(source)
        one_less = {"ffn": replace(source, ffn=source.ffn - 64), "layers": replace(source, layers=source.layers - 1)}
        grain = max(count(source) - count(one_less[axis]) for axis in axes if axis in one_less)
        assert limit - max(grain, 0.02 * limit) <= count(shape) <= limit
        assert all(getattr(shape, size) == getattr(source, size) for size in {"ffn", "layers"} - set(axes))
        assert spread(shape, source, axes) < 0.5  # type: ignore[arg-type]
        assert source.hidden == shape.hidden or not table.divides or shape.hidden % shape.heads == 0


def test_a_target_shrinks_every_axis_where_its_steps_are_coarse() -> None:
    """Eight heads of a small GPT-2: half of the neurons would come as close, and would be the worse model."""
    source = Shape(layers=6, hidden=256, heads=8, kv_heads=8, ffn=1024, head_dim=32)
    shape = fit_parameters(source, FAMILIES["gpt2"], ("ffn", "heads", "hidden"), 0.75, parameters("gpt2").count)
    assert shape.heads < 8
    assert spread(shape, source, ("ffn", "heads")) < 0.3


def test_a_target_out_of_reach_says_how_far_the_axes_go() -> None:
    with pytest.raises(StageError, match=r"ffn can shrink this model to 0\.\d+ of its parameters, not to 0\.2"):
        fit_parameters(GPT2_SMALL, FAMILIES["gpt2"], ("ffn",), 0.2, parameters("gpt2").count)
    with pytest.raises(StageError, match="heads and hidden width go together"):
        fit_parameters(GPT2_SMALL, FAMILIES["gpt2"], ("ffn", "heads"), 0.8, parameters("gpt2").count)


def test_the_path_only_ever_shrinks() -> None:
    for family, source in (("gpt2", GPT2_SMALL), ("llama", SMOLLM2), ("qwen3", QWEN3)):
        shapes = path(source, FAMILIES[family], ("ffn", "heads", "hidden", "layers"), parameters(family).count)
        assert shapes[0] == source
        assert len(shapes) > 10
        for larger, smaller in pairwise(shapes):
            pairs = zip(larger.sizes().values(), smaller.sizes().values(), strict=True)
            assert all(new <= old for old, new in pairs)


def test_a_latency_target_takes_the_largest_shape_that_was_measured_to_meet_it() -> None:
    count = parameters("gpt2").count
    shapes = path(GPT2_SMALL, FAMILIES["gpt2"], ("ffn", "heads", "hidden"), count)
    asked: list[Shape] = []

    def seconds(shape: Shape) -> float:
        asked.append(shape)
        return 0.002 + 1e-10 * count(shape)

    shape, table = fit_latency(shapes, 0.6, seconds, count)
    limit = 0.6 * (0.002 + 1e-10 * count(GPT2_SMALL))
    candidates = thin(shapes, count)
    assert shape == max((one for one in candidates if 0.002 + 1e-10 * count(one) <= limit), key=count)
    assert [measured for measured, _ in table] == asked
    assert len(asked) == len(set(asked)) <= 8
    with pytest.raises(StageError, match=r"still takes 0\.\d+ of the source's time, not 0\.01"):
        fit_latency(shapes, 0.01, seconds, count)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "expected either widths"),
        ({"ffn": 0.5, "target": {"parameters": 0.5}}, "expected either widths"),
        ({"ffn": 1.5}, "expected an integer from 1, or a share between 0 and 1"),
        ({"heads": 0}, "expected an integer from 1"),
        ({"target": {"parameters": 1.5}}, "a share between 0 and 1"),
        ({"target": {"parameters": 0.5, "decode_latency": 0.5}}, "expected one of parameters, decode_latency"),
        ({"target": {"weight": 0.5}}, "parameters"),
        ({"ffn": 0.5, "axes": ["ffn"]}, "expected only beside `target`"),
        ({"target": {"parameters": 0.5}, "axes": []}, "each once"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlimConfig.model_validate(knobs)


def test_random_shapes_count_as_the_models_do() -> None:
    """Against transformers itself: the weights of a GPT-2 and a grouped Llama of some sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = replace(GPT2_SMALL, layers=2, hidden=128, heads=2, kv_heads=2, ffn=192)
    config = AutoConfig.for_model(
        "gpt2", n_layer=2, n_embd=128, n_head=2, n_inner=192, vocab_size=VOCABULARY, n_positions=VOCABULARY
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert parameters("gpt2").count(shape) == sum(parameter.numel() for parameter in model.parameters())
