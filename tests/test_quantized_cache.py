"""A cache of 8 bits: what lies in it is what PyTorch keeps, up to half a step, wherever the tokens stand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported, exported, genai_greedy, quantized, sharpened
from pydantic import ValidationError

from compress.checkpoints.folder import inspect_checkpoint
from compress.checkpoints.loading import load_float_model
from export import EXPORT
from export.external_data import read_graph
from export.float_reference import rounds_cache, write_float_reference
from export.initializers import StoredValues, attributes_of
from export.manifest import read_manifest
from export.parity import TOLERANCES
from export.passes.quantized_cache import longest_pairs
from export.runtime.model import OnnxCausalLM
from export.runtime.speculation import ROWS

FAMILIES = ("gpt2", "llama", "gptj", "gemma3_text")


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    short_text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """A float checkpoint, its int8 one, and a bundle of that with a cache of 8 bits, which export has proven."""
    root = tmp_path_factory.mktemp(f"cache-{request.param}")
    dense = sharpened(make_checkpoint(request.param), root / "dense")
    quantized(dense, root / "int8", embeddings=True)
    exported(root / "int8", root / "bundle", short_text, cache="int8", parity_context=48)
    return Exported.below(root)


def scales_of(bundle: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    graph = read_graph(bundle)
    stored = StoredValues(graph, bundle)
    nodes = [node for node in graph.graph.node if node.op_type == "GroupQueryAttention"]
    assert all(attributes_of(node)["kv_cache_bit_width"] == 8 for node in nodes)
    return [(stored[node.input[12]], stored[node.input[13]]) for node in nodes]


def test_quantized_cache_holds_what_pytorch_keeps_up_to_half_a_step(made: Exported) -> None:
    ids_1T = np.random.default_rng(3).integers(3, 300, (1, 40))
    with torch.inference_mode():
        layers = load_float_model(inspect_checkpoint(made.int8))(
            torch.from_numpy(ids_1T), use_cache=True
        ).past_key_values.layers
    batch = OnnxCausalLM.open(made.bundle).new_batch(1, 40)
    batch.feed(ids_1T, np.asarray([40]))
    scales = scales_of(made.bundle)
    assert len(scales) == len(layers)
    first, scale = layers[0], scales[0]  # of later layers' inputs earlier roundings have a part
    for side, values, step in (("key", first.keys, scale[0]), ("value", first.values, scale[1])):
        codes = batch.cache[f"present.0.{side}"].numpy()
        assert codes.dtype == np.int8
        kept = values.shape[2]
        expected = values.numpy() / step
        inside = np.abs(expected) < 127
        assert inside.mean() > 0.97  # these ids are no text: some lie beyond what calibration saw
        apart = np.abs(codes[:, :, 40 - kept :] - expected)
        assert np.quantile(apart[inside], 0.9) <= 1.0  # half a step, and what rounded activations add
        assert np.abs(codes).max() > 60


def test_parity_is_proven_without_it_and_with_it(made: Exported) -> None:
    parity = read_manifest(made.bundle)["parity"]
    rounded = ("float32", "int8 cache", "int8 activations")
    assert set(parity) >= set(rounded)
    for arithmetic in rounded:
        assert all(
            check["kl"] <= TOLERANCES[arithmetic].kl
            for name, check in parity[arithmetic].items()
            if name != "tolerance"
        )
    assert parity["int8 cache"]["decode"]["kl"] > parity["float32"]["decode"]["kl"]


def test_the_float_reference_has_a_float_cache_unless_it_is_asked_to_keep_it(made: Exported, tmp_path: Path) -> None:
    for keeps in (True, False):
        folder = tmp_path / str(keeps)
        folder.mkdir()
        write_float_reference(made.bundle, read_graph(made.bundle), folder, float_cache=not keeps)
        assert rounds_cache(read_graph(folder)) == keeps
        kinds = {value.type for value in OnnxCausalLM.open(folder, provider="cpu").session.get_inputs()}
        assert ("tensor(int8)" in kinds) == keeps


@pytest.mark.parametrize(("rotated", "interleaved"), [(6, False), (6, True), (0, False)])
def test_a_pair_is_as_long_at_every_position(rotated: int, interleaved: bool) -> None:
    keys_HTD = np.random.default_rng(0).normal(size=(2, 5, 8))
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + rotated // 2) for i in range(rotated // 2)]
    expected_HTD = np.abs(keys_HTD)
    for a, b in pairs:
        for channel in (a, b):
            expected_HTD[..., channel] = np.sqrt(keys_HTD[..., a] ** 2 + keys_HTD[..., b] ** 2)
    np.testing.assert_allclose(longest_pairs(keys_HTD, rotated, interleaved), expected_HTD)
    turned = keys_HTD.copy()
    for angle, (a, b) in enumerate(pairs):
        cosine, sine = np.cos(angle + 0.7), np.sin(angle + 0.7)
        turned[..., a], turned[..., b] = (
            cosine * keys_HTD[..., a] - sine * keys_HTD[..., b],
            sine * keys_HTD[..., a] + cosine * keys_HTD[..., b],
        )
    np.testing.assert_allclose(longest_pairs(turned, rotated, interleaved)[..., :rotated], expected_HTD[..., :rotated])


def test_genai_decodes_it_alike(made: Exported) -> None:
    ids, added = genai_greedy(made.bundle, "The old house stood", 8)
    assert OnnxCausalLM.open(made.bundle).generate([ids], max_new_tokens=8, stop_ids=[]) == [added]


def test_several_tokens_in_one_pass_are_steps_to_the_bit_with_it_too(made: Exported) -> None:
    model, ids = OnnxCausalLM.open(made.bundle, threads=1), np.random.default_rng(6).integers(0, 300, 8 + ROWS)
    batch = model.new_batch(1, 24)
    batch.feed(ids[None, :8], np.asarray([8]))
    steps = np.stack([batch.step(np.asarray([token]))[0].copy() for token in ids[8:]])
    assert np.array_equal(batch.rewind(8).check(ids[8:], model.checker), steps)


def test_its_readme_has_no_program_that_makes_float_caches(made: Exported) -> None:
    text = (made.bundle / "README.md").read_text(encoding="utf-8")
    assert "np.int8" in text
    assert "Int8Array" in text
    assert "transformers.js\n" not in text
    assert "optimum" not in text


def test_quantized_cache_leaves_a_graph_alone_that_is_to_keep_floats(
    gpt2: Path, short_text: Path, tmp_path: Path
) -> None:
    bundle = exported(gpt2, tmp_path / "bundle", short_text, cache="float")
    assert "quantized_cache" not in read_manifest(bundle)["passes"]
    assert not rounds_cache(read_graph(bundle))


@pytest.mark.parametrize("knobs", [{"provider": "cuda"}, {"layout": "transformers.js"}])
def test_where_it_is_not_proven_it_is_refused(knobs: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="cache: int8: expected provider cpu"):
        EXPORT.config(cache="int8", **knobs)
