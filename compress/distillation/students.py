"""Where a student comes from: some of its teacher's layers, or a config of its own.

    spread         the layers that stay, evenly spaced, first and last among them (DistilBERT, arXiv 1910.01108)
    by_influence   the layers that stay, by how much each does on text (`compress/structured/depth.py`)
    listed         the layers that stay, as they are told
    with_layers    a student that is its teacher without the other layers: every weight is one of the teacher's
    fresh          a student of another shape, which takes over from its teacher what fits by name and shape

The configs are those of `student_config.py`: no student has dropout.

Not covered: narrower students cut out of the teacher (that is the `slim` stage); a teacher with another tokenizer,
which `same_tokenizer` tells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.distillation.student_config import evenly_spaced as evenly_spaced  # the third way to choose layers
from compress.distillation.student_config import is_dropout, of_layers, student_config, without_dropout
from compress.models.block_linears import block_list, blocks
from compress.models.layerwise import BlockWalk
from compress.stage import Progress, Silent, StageError, StageMetadata, first_line
from compress.structured.depth import Stack, block_influence, least_missed, most_influential

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Measure = Literal["block_influence", "perplexity"]
PROBE = (
    "In 1984 it cost $3,141.59 (or 27 %).\n\n"
    "    def f(x_1: int) -> str:\n\t\treturn f'{x_1 + 0x2A!r:>8}'  # a  b   c\n"
    "Größe, naïveté, İstanbul; Привет, Ελλάδα; 你好,世界; こんにちは; 안녕하세요; नमस्ते; مرحبا; שלום.\n"
    "\U0001f600\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1ee e\u0301 \ufb01n\u00a0 <|endoftext|></s> "
    "https://example.org/?q=a%20b\r\n "
)
"""Text on which tokenizers of different rules give different ids: digits, runs of spaces, code, scripts, emoji."""


def listed(keep: Sequence[int], depth: int) -> list[int]:
    """The listed layers, in rising order.

    Raises:
        StageError: one is not among `depth` layers, or comes twice, or there is none.
    """
    kept = sorted(keep)
    if not kept or kept[0] < 0 or kept[-1] >= depth or len(set(kept)) < len(kept):
        raise StageError(
            f"distill: keep: expected layers below {depth}, the source's depth, each once, got {list(keep)}"
        )
    return kept


def by_influence(
    folder: Path,
    rows_NT: "NDArray[np.int64]",
    layers: int,
    *,
    by: Measure = "block_influence",
    progress: Progress | None = None,
) -> tuple[list[int], StageMetadata]:
    """The `layers` layers of a dense checkpoint that do most on the rows, in rising order, and what was measured."""
    progress = progress or Silent()
    walk = BlockWalk(folder, rows_NT)
    if by == "perplexity":
        kept, gone = least_missed(Stack(folder, rows_NT), layers, progress)
        return kept, {"depth": {"by": by, "gone": gone}}
    influence = []
    with progress.task("weigh layers", total=len(walk)) as task:
        for block in walk:
            before_NTD = walk.hidden_NTD
            assert before_NTD is not None
            influence.append(block_influence(before_NTD, block.forward()))
            task.advance(note=f"{block.name}: influence {influence[-1]:.3f}")
    return most_influential(influence, layers), {"depth": {"by": by, "influence": influence}}


def with_layers(source: "PreTrainedModel", kept: Sequence[int]) -> "PreTrainedModel":
    """A new model whose blocks are the source's blocks `kept`, weights copied, that computes what the source would
    compute if the other blocks were passed by.

    Raises:
        StageError: a block of this family depends on its place in a way that is not covered.
    """
    from transformers import AutoModelForCausalLM

    name, _ = block_list(source)
    config = of_layers(source.config, kept)
    without_dropout(config)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=source.dtype)
    weights, own = source.state_dict(), student.state_dict()
    origins = {key: _origin(key, name, kept) for key in own}
    stay = {key for key in weights if not key.startswith(f"{name}.") or _layer(key, name) in kept}
    unlike = sorted(stay ^ set(origins.values())) or [
        key for key, origin in origins.items() if own[key].shape != weights[origin].shape
    ]
    if unlike:
        raise StageError(
            f"distill: {source.config.model_type}: layers {list(kept)} alone: expected layers built alike, but "
            f"{unlike[0]} has no counterpart; keep all layers"
        )
    student.load_state_dict({key: weights[origin] for key, origin in origins.items()}, strict=True)
    student.tie_weights()
    _keep_scores(student, kept)
    _check_places(source, student, kept)
    student.eval()
    return student


def _layer(key: str, blocks: str) -> int:
    """The number of the block that a weight belongs to."""
    return int(key.removeprefix(f"{blocks}.").partition(".")[0])


def _origin(key: str, blocks: str, kept: Sequence[int]) -> str:
    """The name in the source of what the student calls `key`."""
    if not key.startswith(f"{blocks}."):
        return key
    layer = _layer(key, blocks)
    return f"{blocks}.{kept[layer]}.{key.removeprefix(f'{blocks}.{layer}.')}"


def _keep_scores(student: "PreTrainedModel", kept: Sequence[int]) -> None:
    """Where GPT-2 divides scores by a layer's number, let a layer's queries carry the ratio of its two numbers."""
    if getattr(student.config, "scale_attn_by_inverse_layer_idx", False):
        import torch

        from compress.models.families import FAMILIES
        from compress.structured.extraction import renumber

        with torch.no_grad():
            renumber(student, FAMILIES["gpt2"].blocks, kept)


def _check_places(source: "PreTrainedModel", student: "PreTrainedModel", kept: Sequence[int]) -> None:
    """Refuse a block that does in the student what it did not do in the source."""

    old, new = blocks(source), blocks(student)
    carried = getattr(source.config, "scale_attn_by_inverse_layer_idx", False)
    for (name, block), layer in zip(new, kept, strict=True):
        pairs = zip(block.named_modules(), old[layer][1].named_modules(), strict=True)
        for (inner, module), (_, origin) in pairs:
            ours, theirs = _settings(module), _settings(origin)
            differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            if carried and differing == ["scaling"]:
                continue
            if differing or type(module) is not type(origin):
                what = ", ".join(differing) or "its kind of module"
                raise StageError(
                    f"distill: {source.config.model_type}: layer {layer} cannot become {name}: {inner or 'it'} depends "
                    f"on its place ({what}); keep all layers"
                )


def _settings(module: "nn.Module") -> dict[str, Any]:
    """Plain attributes of a module that have a say in what it computes in evaluation mode."""
    silent = ("layer_idx", "layer_id", "training", "gradient_checkpointing", "p")
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None)
        and not (key in silent or key[0] == "_" or is_dropout(key))
    }


def fresh(
    architecture: Mapping[str, Any], teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int
) -> tuple["PreTrainedModel", StageMetadata]:
    """A student of another shape: its weights are drawn by `seed`, but what fits is taken over from the teacher.

    Args:
        architecture: keys of config.json, as `student_config` takes them.
        tokenizer: tells the special tokens where the teacher's config does not.

    A parameter is taken over where the teacher has one of the same name and shape, block `i` from the block that
    `spread` has in its place.

    Returns:
        The student, and how many tensors and weights were taken over, of how many.

    Raises:
        StageError: a key is unknown, contradicts the teacher's vocabulary, or the config makes no model that runs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = student_config(architecture, teacher.config, tokenizer)
    config._attn_implementation = None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=teacher.dtype)
        student.eval()
        with torch.no_grad():
            student(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise StageError(
            f"distill: architecture: a {config.model_type} of {dict(architecture)} does not run "
            f"({first_line(error)}); expected sizes that fit each other: heads a multiple of key-value heads, the "
            "width a multiple of heads"
        ) from error
    return student, {"config": dict(architecture), "from_teacher": take_over(student, teacher)}


def take_over(student: "PreTrainedModel", teacher: "PreTrainedModel") -> StageMetadata:
    """Copy every parameter that the teacher has under the same name, in its block's place, in the same shape.

    Returns:
        How many tensors and weights were copied, of how many; a tied one counts once.
    """
    import torch

    (name, blocks), (_, layers) = block_list(student), block_list(teacher)
    origins = evenly_spaced(len(layers), len(blocks))
    own, given = dict(student.named_parameters()), dict(teacher.named_parameters())
    copied: dict[str, int] = {}
    with torch.no_grad():
        for key, parameter in own.items():
            source = given.get(_origin(key, name, origins))
            if source is not None and source.shape == parameter.shape:
                parameter.copy_(source)
                copied[key] = parameter.numel()
    if f"{name}.0.attn.c_attn.weight" in copied and getattr(teacher.config, "scale_attn_by_inverse_layer_idx", False):
        _keep_scores(student, origins)
    return {
        "tensors": len(copied),
        "of_tensors": len(own),
        "weights": sum(copied.values()),
        "of_weights": sum(parameter.numel() for parameter in own.values()),
    }


def same_tokenizer(teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase") -> None:
    """Make sure that both read any text as the same ids.

    Raises:
        StageError: they differ in vocabulary, in special tokens, or in the ids of PROBE; the first difference is named.
    """
    difference = _vocabulary_difference(student.get_vocab(), teacher.get_vocab()) or _special_difference(
        student.special_tokens_map, teacher.special_tokens_map
    )
    if difference is None:
        difference = _probe_difference(student, teacher)
    if difference is not None:
        raise StageError(
            f"distill: student and teacher must share one vocabulary and tokenizer, but {difference}; choose a teacher "
            "with the student's tokenizer"
        )


def _vocabulary_difference(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    by_id = ({number: token for token, number in vocabulary.items()} for vocabulary in (student, teacher))
    mine, theirs = by_id
    for number in sorted(mine.keys() | theirs.keys()):
        if mine.get(number) != theirs.get(number):
            said = _said(mine.get(number)), _said(theirs.get(number))
            return f"id {number} is {said[0]} to the student and {said[1]} to the teacher"
    return None


def _said(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


def _special_difference(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str | None:
    for key in sorted(student.keys() | teacher.keys()):
        mine, theirs = str(student.get(key)), str(teacher.get(key))
        if mine != theirs:
            return f"{key} is {mine} to the student and {theirs} to the teacher"
    return None


def _probe_difference(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> str | None:
    mine, theirs = ([int(token) for token in tokenizer(PROBE)["input_ids"]] for tokenizer in (student, teacher))
    if mine == theirs:
        return None
    place = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    said = [
        _said(str(tokenizer.convert_ids_to_tokens(ids[place])) if place < len(ids) else None)
        for tokenizer, ids in ((student, mine), (teacher, theirs))
    ]
    return f"token {place} of a probe text is {said[0]} to the student and {said[1]} to the teacher"
