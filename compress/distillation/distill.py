"""Distillation: a student with fewer layers learns to predict what the teacher predicts.

The student starts as the source with some blocks left out, so that every weight it has is one the source had. The
teacher is the recipe's source. With `layers` as deep as the source, nothing is left out: that is how a pruned model
recovers, and with `prune` how a dense one becomes sparse on the way (`gradual.py`).
Sources: DistilBERT/DistilGPT2 for the spread of the kept layers (arXiv 1910.01108); Minitron for forward KL as the
main loss (arXiv 2407.14679).

Not covered: narrower students, losses between hidden states, a stored teacher.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from compress.checkpoint import end_of_text, load_model, load_tokenizer, save_checkpoint
from compress.stage import Facts, Stage, StageError, StageInput
from compress.text import pack, read_documents, tokenize
from compress.training.train import TrainingKnobs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LossName = Literal["forward_kl", "cross_entropy"]


class DistillConfig(TrainingKnobs):
    """Train a student with fewer layers on the teacher's predictions."""

    layers: int | None = Field(default=None, gt=0)
    """How many of the source's layers the student keeps, first and last among them; absent: all of them."""
    keep: tuple[int, ...] | None = None
    """Or the kept layers themselves, counted from 0."""
    losses: Mapping[LossName, float] = Field(default={"forward_kl": 0.9, "cross_entropy": 0.1})
    """Weights of the losses."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of both distributions in the KL."""

    @model_validator(mode="after")
    def _one_choice(self) -> "DistillConfig":
        if self.layers is not None and self.keep is not None:
            raise ValueError("expected either `layers`, a count, or `keep`, a list of layers")
        if self.keep is not None and (not self.keep or list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0):
            raise ValueError("keep: expected layer numbers from 0, rising, such as [0, 2, 5]")
        if not any(weight > 0 for weight in self.losses.values()):
            raise ValueError("losses: expected at least one weight above 0")
        return self


def run(config: DistillConfig, given: StageInput) -> Facts:
    """Leaves a dense checkpoint of the student, trained on `given.train_text`."""
    import torch

    from compress.distillation.losses import distillation_loss, ends_in_linear_head
    from compress.linears import sparsity
    from compress.training.fit import fit
    from compress.training.zeros import pruning_facts

    assert given.source is not None
    if given.teacher is None or given.train_text is None:
        raise StageError("distill: expected a teacher (the recipe's source) and a training text (data.train)")
    source, tokenizer = load_model(given.source), load_tokenizer(given.source)
    teacher = load_model(given.teacher).requires_grad_(False)
    if load_tokenizer(given.teacher).get_vocab() != tokenizer.get_vocab():
        raise StageError(f"distill: {given.source} and its teacher {given.teacher} must share one vocabulary")
    kept = _kept(config, source.config.num_hidden_layers)
    student = with_layers(source, kept)
    rows_NT = pack(tokenize(read_documents(given.train_text), tokenizer), config.length, end_of_text(tokenizer))
    for model in (student, teacher):
        if not ends_in_linear_head(model, torch.from_numpy(rows_NT[:1, :8])):
            raise StageError(
                f"distill: {model.config.model_type} changes its logits after the head, which is not supported"
            )
    weights: dict[str, float] = {str(name): weight for name, weight in config.losses.items()}
    schedule = config.schedule()
    history = fit(
        student,
        rows_NT,
        schedule,
        loss=lambda model, ids_BT: distillation_loss(model, teacher, ids_BT, weights, config.temperature),
        scratch=given.scratch,
        seed=given.seed,
        progress=given.progress,
        label="distill",
    )
    save_checkpoint(student, tokenizer, given.out, dtype=config.save_dtype)
    pruned = pruning_facts(config.prune, schedule.steps(config.length), student)
    return {
        "kept_layers": kept,
        "sparsity": sparsity(student),
        "text_tokens": int(rows_NT.size),
        **pruned,
        "history": history,
    }


def _kept(config: DistillConfig, depth: int) -> list[int]:
    if config.keep is not None:
        kept = list(config.keep)
        if kept[-1] >= depth:
            raise StageError(f"distill: keep: expected layers below {depth}, the source's depth, got {kept[-1]}")
        return kept
    layers = depth if config.layers is None else config.layers
    if layers > depth:
        raise StageError(
            f"distill: layers: the source has {depth} layers, so a student of {layers} cannot be cut from it"
        )
    return spread(depth, layers)


def spread(depth: int, layers: int) -> list[int]:
    """`layers` of `depth` layers, evenly spaced with the first and the last kept: 12 -> 6 gives 0, 2, 4, 7, 9, 11."""
    if layers == 1:
        return [0]
    return [round(index * (depth - 1) / (layers - 1)) for index in range(layers)]


def with_layers(source: "PreTrainedModel", kept: list[int]) -> "PreTrainedModel":
    """A new model of the source's architecture whose blocks are the source's blocks `kept`, weights copied."""
    import copy

    from transformers import AutoModelForCausalLM

    from compress.linears import block_list

    name, _ = block_list(source)
    shape = copy.deepcopy(source.config)
    shape.num_hidden_layers = len(kept)
    if getattr(shape, "layer_types", None):
        shape.layer_types = [shape.layer_types[index] for index in kept]
    for key in _dropouts(shape):
        setattr(shape, key, 0.0)  # a student imitates a fixed function: noise only slows it
    student: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=source.dtype)
    renamed = {}
    for key, tensor in source.state_dict().items():
        if not key.startswith(f"{name}."):
            renamed[key] = tensor
            continue
        index, _, rest = key.removeprefix(f"{name}.").partition(".")
        if int(index) in kept:
            renamed[f"{name}.{kept.index(int(index))}.{rest}"] = tensor
    student.load_state_dict(renamed, strict=True)
    student.tie_weights()
    student.eval()
    return student


def _dropouts(config: "PreTrainedConfig") -> list[str]:
    return [
        key
        for key, value in config.to_dict().items()
        if key.endswith(("dropout", "pdrop")) and isinstance(value, float)
    ]


DISTILL = Stage(
    kind="distill",
    summary="train a student with fewer layers (or the pruned model itself) on the teacher's predictions",
    version=1,
    config=DistillConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=run,
    materials=lambda config: frozenset({"teacher", "train_text"}),
    libraries=("torch", "transformers", "accelerate", "tokenizers", "numpy"),
)
