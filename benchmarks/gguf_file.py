"""A checkpoint as a GGUF file in Q8_0, the 8-bit format of llama.cpp: the peer gets the weights that we get.

A Q8_0 block is 32 weights of a row as int8 with one float16 scale. Matrices and the embedding are Q8_0; biases, norms
and GPT-2's position table stay float32, as llama.cpp's own converter leaves them. A tied head is not written: llama.cpp
takes the embedding in its place.

GPT-2 holds its matrices as [in, out] (Conv1D), GGUF as [out, in]. Llama's query and key rows are reordered, because
llama.cpp rotates neighboring pairs (0, 1), (2, 3) ... where transformers rotates halves (i, i + width / 2):

    [heads, 2, width / 2, in]  ->  [heads, width / 2, 2, in]

Token ids go in and come out, so that no tokenizer is written. Source: convert_hf_to_gguf.py in llama.cpp. Not covered:
other families, scaled rotary embeddings.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
GPT2_LAYER = {
    "ln_1.weight": "attn_norm.weight",
    "ln_1.bias": "attn_norm.bias",
    "attn.c_attn.weight": "attn_qkv.weight",
    "attn.c_attn.bias": "attn_qkv.bias",
    "attn.c_proj.weight": "attn_output.weight",
    "attn.c_proj.bias": "attn_output.bias",
    "ln_2.weight": "ffn_norm.weight",
    "ln_2.bias": "ffn_norm.bias",
    "mlp.c_fc.weight": "ffn_up.weight",
    "mlp.c_fc.bias": "ffn_up.bias",
    "mlp.c_proj.weight": "ffn_down.weight",
    "mlp.c_proj.bias": "ffn_down.bias",
}
LLAMA_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write_gguf(checkpoint: Path, file: Path, kind: Literal["Q8_0", "F32"] = "Q8_0") -> None:
    """Write the dense checkpoint in a folder as one GGUF file, its matrices in this type.

    Raises:
        ValueError: the family is not one of FAMILIES.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if model.config.model_type not in FAMILIES:
        raise ValueError(f"{checkpoint}: expected one of {', '.join(FAMILIES)}, got {model.config.model_type}")
    about, tensors = FAMILIES[model.config.model_type]
    writer = gguf.GGUFWriter(str(file), model.config.model_type)
    writer.add_block_count(model.config.num_hidden_layers)
    writer.add_context_length(model.config.max_position_embeddings)
    writer.add_embedding_length(model.config.hidden_size)
    writer.add_head_count(model.config.num_attention_heads)
    writer.add_vocab_size(model.config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "Q8_0" else gguf.LlamaFileType.ALL_F32)
    about(writer, model.config)
    for name, tensor in tensors(model):
        _add(writer, name, tensor, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotate_pairs(weight_OI: Floats, heads: int) -> Floats:
    """Reorder the rows of a query or key matrix from halves to neighboring pairs."""
    rows, columns = weight_OI.shape
    return weight_OI.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Floats, kind: gguf.GGMLQuantizationType) -> None:
    tensor = np.ascontiguousarray(tensor, dtype=np.float32)
    if tensor.ndim == 1 or name.startswith("position_embd"):
        writer.add_tensor(name, tensor)
        return
    writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _about_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _about_llama(writer: gguf.GGUFWriter, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _gpt2_tensors(model: Any) -> Iterator[tuple[str, Floats]]:
    state = _state(model)
    yield "token_embd.weight", state["transformer.wte.weight"]
    yield "position_embd.weight", state["transformer.wpe.weight"]
    for layer in range(model.config.num_hidden_layers):
        for theirs, ours in GPT2_LAYER.items():
            tensor = state[f"transformer.h.{layer}.{theirs}"]
            yield f"blk.{layer}.{ours}", tensor.T if tensor.ndim == 2 else tensor
    yield "output_norm.weight", state["transformer.ln_f.weight"]
    yield "output_norm.bias", state["transformer.ln_f.bias"]


def _llama_tensors(model: Any) -> Iterator[tuple[str, Floats]]:
    state = _state(model)
    heads = {
        "self_attn.q_proj.weight": model.config.num_attention_heads,
        "self_attn.k_proj.weight": model.config.num_key_value_heads,
    }
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    for layer in range(model.config.num_hidden_layers):
        for theirs, ours in LLAMA_LAYER.items():
            tensor = state[f"model.layers.{layer}.{theirs}"]
            yield f"blk.{layer}.{ours}", rotate_pairs(tensor, heads[theirs]) if theirs in heads else tensor
    yield "output_norm.weight", state["model.norm.weight"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]


def _state(model: Any) -> dict[str, Floats]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


About = Callable[[gguf.GGUFWriter, Any], None]
Tensors = Callable[[Any], Iterator[tuple[str, Floats]]]
FAMILIES: dict[str, tuple[About, Tensors]] = {
    "gpt2": (_about_gpt2, _gpt2_tensors),
    "llama": (_about_llama, _llama_tensors),
}
