"""Training with rounded weights: codes as quantize finds them, gradients straight through, and nothing else changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress import QuantizeConfig, StageError, StageInput
from compress.checkpoints.folder import Checkpoint, load_tokenizer, save_checkpoint
from compress.checkpoints.loading import load_float_model, load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix, quantize_rows
from compress.models.block_linears import block_linears
from compress.quantization.fake_quantize import BITSANDBYTES, ROWS, effective_weight, round_weights, rounded, unround
from compress.quantization.stage import run

FAMILIES: dict[str, dict[str, object]] = {
    "gpt2": {},
    "llama": {},
    "llama_untied": {"tie_word_embeddings": False},
    "opt": {"word_embed_proj_dim": 32},
    "gpt_neox": {},
    "gemma": {},
}
"""Conv1D; tied; a head of its own; linears beside the blocks; a head stored under another name; a scaled embedding."""


def checkpoint(make_checkpoint: Callable[..., Path], family: str) -> Path:
    return make_checkpoint(family.removesuffix("_untied"), **FAMILIES[family])


def next_token_loss(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def trained(model: PreTrainedModel, steps: int = 3) -> None:
    """A few steps that are large enough to change codes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        ids_BT = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(step))
        next_token_loss(model, ids_BT).backward()
        optimizer.step()
        optimizer.zero_grad()


def quantized(model: PreTrainedModel, source: Path, tmp_path: Path, *, config: QuantizeConfig) -> Path:
    dense, out = tmp_path / "dense", tmp_path / "int8"
    dense.mkdir()
    out.mkdir()
    save_checkpoint(model, load_tokenizer(source), dense)
    run(config, StageInput(source=dense, out=out, scratch=tmp_path))
    return out


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantize_finds_the_codes_that_training_computed_with(
    family: str, embeddings: bool, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint(make_checkpoint, family)
    model = load_model(source)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = round_weights(model, QuantizeConfig(embeddings=embeddings))
    trained(model)
    assert any(not torch.equal(before[f"{name}.weight"], model.state_dict()[f"{name}.weight"]) for name in names)
    computed = {name: effective_weight(model.get_submodule(name)).detach().numpy() for name in names}
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT).logits
    unround(model)
    folder = quantized(model, source, tmp_path, config=QuantizeConfig(embeddings=embeddings))
    matrices = {name: matrix.dequantize() for name, matrix in read_quantized_matrices(folder).items()}
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    heads = {name for name, module in model.named_modules() if module is head and tied and embeddings}
    assert set(matrices) == set(names) - heads
    for name in matrices:
        found = computed[name].T if isinstance(model.get_submodule(name), Conv1D) else computed[name]
        assert found.tobytes() == matrices[name].tobytes(), name
    with torch.inference_mode():
        expected_BTV = load_float_model(Checkpoint(folder))(input_ids=ids_BT).logits
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("knobs", [{"scheme": "int4", "bits": {"*.down_proj": 8}}, {"scheme": "int8_group"}])
@pytest.mark.parametrize("family", ["llama", "llama_untied", "gemma"])
def test_groups_are_left_on_the_grid_that_quantize_finds(
    family: str, knobs: dict[str, Any], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint(make_checkpoint, family)
    config = QuantizeConfig(embeddings=True, **knobs)
    model = load_model(source)
    names = round_weights(model, config)
    trained(model)
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT).logits
    computed = {name: effective_weight(model.get_submodule(name)).detach().numpy() for name in names}
    unround(model)
    folder = quantized(model, source, tmp_path, config=config)
    matrices = read_quantized_matrices(folder)
    assert len(matrices) % 7 == 1, "seven linears a layer, and the embedding"
    for name, matrix in matrices.items():
        np.testing.assert_allclose(matrix.dequantize(), computed[name], rtol=1e-5, atol=1e-7, err_msg=name)
    with torch.inference_mode():
        torch.testing.assert_close(
            logits_BTV, load_float_model(Checkpoint(folder))(input_ids=ids_BT).logits, rtol=1e-4, atol=1e-4
        )


def test_gpt2_is_left_on_the_grid_of_4_bits(gpt2: Path, tmp_path: Path) -> None:
    config, model = QuantizeConfig(scheme="int4"), load_model(gpt2)
    names = round_weights(model, config)
    trained(model)
    computed = {name: effective_weight(model.get_submodule(name)).detach().numpy().T for name in names}
    unround(model)
    for name, matrix in read_quantized_matrices(quantized(model, gpt2, tmp_path, config=config)).items():
        np.testing.assert_allclose(matrix.dequantize(), computed.pop(name), rtol=1e-5, atol=1e-7, err_msg=name)
    assert not computed


def test_what_groups_cannot_hold_is_refused_as_quantize_does(make_checkpoint: Callable[..., Path]) -> None:
    odd = make_checkpoint("gpt2", n_inner=100, n_layer=1)
    with pytest.raises(StageError, match=r"c_fc has 100 outputs, and GPTQ's format needs a multiple of 8"):
        round_weights(load_model(odd), QuantizeConfig(scheme="int4"))


def test_codes_differ_from_those_before_training(gpt2: Path) -> None:
    model = load_model(gpt2)
    linear = next(block_linears(model))
    before_OI = quantize_rows(linear.weight_OI().numpy())[0].copy()
    round_weights(model, QuantizeConfig())
    trained(model)
    assert (quantize_rows(linear.weight_OI().numpy())[0] != before_OI).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_table_rule_is_quantize_rows_and_linear_rule_is_bitsandbytes(transposed: bool) -> None:
    import bitsandbytes

    weight_OI = torch.randn(37, 50, generator=torch.Generator().manual_seed(1)) * 0.02
    weight_OI[3] = 0
    weight_OI[:, 7] = 0
    weight_OI = weight_OI.T.contiguous().T if transposed else weight_OI
    table = QuantizedMatrix.from_rows(*quantize_rows(weight_OI.numpy())).dequantize()
    assert rounded(weight_OI, ROWS).numpy().tobytes() == table.tobytes()
    codes_OI, scale_O, _ = bitsandbytes.functional.int8_vectorwise_quant(weight_OI.half())
    linear = QuantizedMatrix.from_rows(codes_OI.numpy(), scale_O.numpy()).dequantize()
    found_OI = rounded(weight_OI, BITSANDBYTES)
    assert found_OI.numpy().tobytes() == np.ascontiguousarray(linear).tobytes()
    assert found_OI.stride() == weight_OI.stride()
    assert not found_OI[3].any()
    assert not found_OI[:, 7].any()
    assert not torch.equal(found_OI, rounded(weight_OI, ROWS)), "the two rules are two"


def test_parts_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_OI = torch.randn(33, 20)
    whole_OI = rounded(weight_OI, BITSANDBYTES)
    monkeypatch.setattr("compress.quantization.fake_quantize.PART", 64)
    assert torch.equal(rounded(weight_OI, BITSANDBYTES), whole_OI)


def gradients(model: PreTrainedModel, ids_BT: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    next_token_loss(model, ids_BT).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_gradients_are_those_of_the_rounded_model(family: str, make_checkpoint: Callable[..., Path]) -> None:
    """Straight through: dL/dW is dL/dR(W), which a plain model that holds R(W) gives."""
    source = make_checkpoint(family)
    model, plain = load_model(source), load_model(source)
    names = round_weights(model, QuantizeConfig(embeddings=True))
    with torch.no_grad():
        for name in names:
            plain.get_submodule(name).weight.copy_(effective_weight(model.get_submodule(name)))
    ids_BT = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    found, expected = gradients(model, ids_BT), gradients(plain, ids_BT)
    assert set(found) == set(expected) == {name for name, _ in model.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_effective_weight_passes_its_gradient_on(gpt2: Path) -> None:
    model = load_model(gpt2)
    assert effective_weight(model.get_output_embeddings()) is model.get_output_embeddings().weight
    round_weights(model, QuantizeConfig(embeddings=True))
    factor_VD = torch.randn(320, 64)
    weight_VD = effective_weight(model.get_output_embeddings())
    assert not torch.equal(weight_VD, model.get_output_embeddings().weight)
    (weight_VD * factor_VD).sum().backward()
    assert torch.equal(model.get_input_embeddings().weight.grad, factor_VD)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_autocast_computes_as_the_plain_modules_do(family: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(family)
    model, plain = load_model(source), load_model(source)
    names = round_weights(model, QuantizeConfig())
    with torch.no_grad():
        for name in names:
            plain.get_submodule(name).weight.copy_(effective_weight(model.get_submodule(name)))
    ids_BT = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    module = model.get_submodule(names[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(3, module.weight.shape[isinstance(module, nn.Linear)])).dtype == torch.bfloat16
        found, expected = gradients(model, ids_BT), gradients(plain, ids_BT)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()), msg=name)


def test_rounded_linears_are_not_held_for_the_backward_pass(gpt2: Path) -> None:
    model = load_model(gpt2)
    names = round_weights(model, QuantizeConfig())
    shapes = {model.get_submodule(name).weight.shape for name in names}
    own = {parameter.data_ptr() for parameter in model.parameters()}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        next_token_loss(model, torch.arange(30)[None])
    weights = [tensor for tensor in held if tensor.shape in shapes]
    assert len(weights) >= len(names)
    assert {tensor.data_ptr() for tensor in weights} <= own


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_only_classes_change_and_come_back(family: str, make_checkpoint: Callable[..., Path]) -> None:
    model = load_model(make_checkpoint(family))
    classes = {name: type(module) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears = [linear.name for linear in block_linears(model)]
    ids_BT = torch.arange(20)[None]
    with torch.inference_mode():
        own_BTV = model(input_ids=ids_BT).logits
        changed = round_weights(model, QuantizeConfig(embeddings=True))
        rounded_BTV = model(input_ids=ids_BT).logits
    assert {name for name, module in model.named_modules() if type(module) is not classes[name]} == set(changed)
    assert [linear.name for linear in block_linears(model)] == linears
    assert not torch.equal(rounded_BTV, own_BTV)
    unround(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids_BT).logits, own_BTV)


def test_zeros_are_rounded_to_zero(gpt2: Path) -> None:
    model = load_model(gpt2)
    round_weights(model, QuantizeConfig())
    module = model.get_submodule("transformer.h.0.mlp.c_fc")
    with torch.no_grad():
        module.weight[::2] = 0
        module.weight[:, 5] = 0
    found = effective_weight(module)
    assert not found[module.weight == 0].any()
    assert found[1::2].any()


def test_what_cannot_be_rounded_is_refused(gpt2: Path) -> None:
    model = load_model(gpt2)
    round_weights(model, QuantizeConfig(embeddings=True))
    with pytest.raises(StageError, match="rounds them already"):
        round_weights(model, QuantizeConfig(embeddings=True))
    unround(model)
    for block in model.transformer.h:
        block.attn.c_attn = block.attn.c_proj = block.mlp.c_fc = block.mlp.c_proj = nn.Identity()
    with pytest.raises(StageError, match="found no linear to round in gpt2"):
        round_weights(model, QuantizeConfig(embeddings=True))
