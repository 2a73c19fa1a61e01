"""A tiny model of a config's own kind: the same architecture and settings, other sizes, random weights.

    layers, hidden, heads, kv_heads, ffn   as a `Shape` says
    width of a head                        the config's own, since rotations are made for it
    weights                                so large that every unit of every axis shows in the logits

Nothing is read but the config. Sizes are chosen so that each width of the tiny model has one meaning: FFN is prime, and
no multiple of a head's width.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.models.block_linears import blocks
from compress.models.families import CONFIG_KEYS, PER_LAYER, SIZES, Family, Shape, Size, config_for
from compress.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
FFN = 101
HEADS = 3
PLAIN_ROTATION: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}


def config_keys(config: "PreTrainedConfig") -> dict[Size, str]:
    """Under which key the config has each size; of those that it does not have, only `kv_heads` and `ffn` may lack.

    Raises:
        StageError: it says no depth, width or number of heads.
    """
    keys: dict[Size, str] = {}
    for size in SIZES:
        found = [key for key in CONFIG_KEYS[size] if isinstance(getattr(config, key, None), int)]
        found += [key for key in CONFIG_KEYS[size] if size == "ffn" and hasattr(config, key)]  # none: 4 * hidden
        if found:
            keys[size] = found[0]
        elif size not in {"kv_heads", "ffn"}:
            raise StageError(f"its config has no {size}: expected one of the keys {', '.join(CONFIG_KEYS[size])}")
    return keys


def square_shape(layers: int, head_dim: int, heads: int = HEADS) -> Shape:
    """The shape that every architecture can have: as wide as its heads together, a key-value head for each."""
    return Shape(layers=layers, hidden=heads * head_dim, heads=heads, kv_heads=heads, ffn=FFN, head_dim=head_dim)


def layers_of_each_kind(config: "PreTrainedConfig") -> list[int]:
    """The first layer of each kind that the config's lists tell apart, and one more where there is one kind."""
    lists = [getattr(config, key) for key in PER_LAYER if getattr(config, key, None)]
    firsts: dict[tuple[Any, ...], int] = {}
    for layer in range(config.num_hidden_layers):
        firsts.setdefault(tuple(entries[layer] for entries in lists), layer)
    found = set(firsts.values())
    return sorted(found | {min(1, config.num_hidden_layers - 1)} if len(found) == 1 else found)


def tiny_config(config: "PreTrainedConfig", family: Family, shape: Shape, layers: Sequence[int]) -> "PreTrainedConfig":
    """The config of a tiny model, as a file of it would be read back.

    Raises:
        ValueError: the architecture refuses these sizes.
    """
    changed: Any = config_for(config, family, shape, layers)
    changed.vocab_size = VOCABULARY
    for key in ("bos_token_id", "eos_token_id"):
        setattr(changed, key, 0)
    changed.pad_token_id = None
    said = {key: value for key, value in changed.to_dict().items() if key != "quantization_config"}
    answer: PreTrainedConfig = type(config).from_dict(said)
    return answer


def plainly_rotated(config: "PreTrainedConfig", head_dim: int) -> "PreTrainedConfig":
    """A copy in which positions rotate whole heads: a rotation never mixes heads, and is simpler to trace so."""
    changed: Any = copy.deepcopy(config)
    given = getattr(config, "rope_parameters", None)
    if given:
        kinds = {kind: value | PLAIN_ROTATION for kind, value in given.items() if isinstance(value, dict)}
        changed.rope_parameters = kinds or given | PLAIN_ROTATION
    for key, whole in (("partial_rotary_factor", 1.0), ("rotary_pct", 1.0), ("rotary_dim", head_dim)):
        if getattr(config, key, None) is not None:
            setattr(changed, key, whole)
    answer: PreTrainedConfig = changed
    return answer


def empty_tiny_model(config: "PreTrainedConfig") -> "PreTrainedModel":
    """A tiny model that has shapes and no weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def tiny_model(config: "PreTrainedConfig") -> "PreTrainedModel":
    """A tiny model with random weights of unit gain, its attention written out, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter + 0.3 * noise)
    model.eval()
    return model


def norms_of(model: "PreTrainedModel") -> list[str]:
    """Layers without parts that map the residual stream to itself, save linears and dropouts, in the order they run."""
    hidden, found, hooks = int(model.config.hidden_size), [], []

    def note_as(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensors = [value for value in (*args[:1], output) if isinstance(value, torch.Tensor)]
            shapes = {value.shape for value in tensors if value.is_floating_point() and value.shape[-1] == hidden}
            if len(tensors) == 2 and len(shapes) == 1 and tensors[0].is_floating_point():
                found.append(name)

        return note

    for name, module in model.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Linear | nn.Dropout | nn.Identity):
            hooks.append(module.register_forward_hook(note_as(name)))
    logits_of(model)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def logits_of(model: "PreTrainedModel") -> torch.Tensor:
    """Logits of two rows of tokens: [2, T, VOCABULARY]."""
    ids_BT = torch.arange(32).reshape(2, 16) * 7 % VOCABULARY
    logits_BTV: torch.Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits_BTV


def pass_by(model: "PreTrainedModel", layers: Sequence[int]) -> None:
    """Let these blocks hand on what they are given, in the form in which they hand on what they compute."""
    for layer in layers:
        block = blocks(model)[layer][1]
        block.register_forward_hook(
            lambda module, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
        )
