"""Distillation: a smaller student learns to predict what the teacher predicts.

The student is the source with some blocks left out (`layers`, `keep`), the source itself (`layers` absent: how a pruned
or slimmed model recovers), another checkpoint (`student`), or a model made from a config (`architecture`); wherever
shapes allow, it starts with the teacher's weights. The teacher is the recipe's source. It runs beside the student, or
it ran once before and was written down (`stored`).

    loss = sum of weight * loss over LOSSES (`compress/training/losses.py`: between distributions over the vocabulary)
           and LAYER_LOSSES (`layer_losses.py`: between hidden states and attention relations)

With `quantization_aware` the student computes with its weights rounded, as `quantize` will round them, so that
it makes up for that rounding too; its losses are divergences from the teacher alone, because the text would pull it
away from what is to be preserved (LLM-QAT, arXiv 2305.17888).
Sources: Hinton et al. (arXiv 1503.02531); DistilBERT for the spread of the kept layers (arXiv 1910.01108); Minitron for
forward KL as the main loss (arXiv 2407.14679).

Not covered: teachers of another vocabulary, text that the student writes itself (on-policy distillation).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from compress.checkpoints.config import read_config, vocabulary_size
from compress.checkpoints.folder import load_tokenizer, save_checkpoint
from compress.checkpoints.loading import load_model
from compress.distillation.config import DistillConfig
from compress.distillation.objective import Distillation, Live, cached
from compress.distillation.students import by_influence, evenly_spaced, fresh, listed, same_tokenizer, with_layers
from compress.models.block_linears import sparsity
from compress.quantization.fake_quantize import round_weights, unround
from compress.stage import StageError, StageInput, StageMetadata
from compress.text import before_text, check_ids, end_of_text, pack, read_documents, tokenize
from compress.training.loop import Schedule, fit
from compress.training.sparsity_masks import pruning_metadata
from compress.training.stage import held_out_rows

PROBE_ROWS = 32
"""Rows of the training text on which layers are weighed."""


def run(config: DistillConfig, given: StageInput) -> StageMetadata:
    """Leaves a dense checkpoint of the student, trained on `given.train_text`."""
    assert given.source is not None
    if given.teacher is None or given.train_text is None:
        raise StageError("distill: expected a teacher (the recipe's source) and a training text (data.train)")
    tokenizer = load_tokenizer(given.source)
    rows_NT = pack(
        tokenize(read_documents(given.train_text), tokenizer),
        config.length,
        end_of_text(tokenizer),
        before_text(tokenizer),
    )
    check_ids(rows_NT, tokenizer, vocabulary_size(read_config(given.source)))
    student, made = _student(config, given, rows_NT)
    objective, teacher = _objective(config, given, student, rows_NT, made)
    if config.quantization_aware:
        round_weights(student, config.rounding())
    schedule = Schedule.of(config)
    history = fit(
        objective,
        rows_NT,
        schedule,
        scratch=given.scratch,
        seed=given.seed,
        progress=given.progress,
        label="distill",
        held_out_NT=held_out_rows(config, given, tokenizer),
        logs=given.logs,
    )
    objective.close()
    unround(student)
    save_checkpoint(student, tokenizer, given.out, dtype=config.save_dtype)
    pruned = pruning_metadata(config.prune, schedule.steps(config.length), student)
    metadata = {"sparsity": sparsity(student), "text_tokens": int(rows_NT.size)}
    return {**made, **teacher, **metadata, **pruned, "history": history}


def _student(
    config: DistillConfig, given: StageInput, rows_NT: NDArray[np.int64]
) -> tuple[PreTrainedModel, StageMetadata]:
    """The student before training, and what is to be said of where it came from."""
    assert given.source is not None
    assert given.teacher is not None
    folder = config.student or given.source
    tokenizer = load_tokenizer(given.teacher)
    same_tokenizer(tokenizer, load_tokenizer(folder))
    if config.architecture is not None:
        return fresh(config.architecture, load_model(given.teacher), tokenizer, given.seed)
    source = load_model(folder)
    depth, noted = source.config.num_hidden_layers, dict[str, Any]()
    layers = depth if config.layers is None else config.layers
    if layers > depth:
        raise StageError(
            f"distill: layers: the source has {depth} layers, so a student of {layers} cannot be cut from it"
        )
    if config.keep is not None:
        kept = listed(config.keep, depth)
    elif config.choose == "spread" or layers == depth:
        kept = evenly_spaced(depth, layers)
    else:
        kept, noted = by_influence(folder, rows_NT[:PROBE_ROWS], layers, by=config.choose, progress=given.progress)
    return with_layers(source, kept), {"kept_layers": kept, **noted}


def _objective(
    config: DistillConfig,
    given: StageInput,
    student: PreTrainedModel,
    rows_NT: NDArray[np.int64],
    made: StageMetadata,
) -> tuple[Distillation, StageMetadata]:
    """What is minimized, and what is to be said of the teacher."""
    assert given.source is not None
    assert given.teacher is not None
    teacher = load_model(given.teacher, dtype="bfloat16" if config.precision == "bf16" else "float32")
    teacher.requires_grad_(False)
    source, metadata = (Live(teacher), {}) if config.stored is None else cached(config, given, teacher, rows_NT)
    uncut = read_config(config.student or given.source) == read_config(given.teacher)
    origins = made.get("kept_layers") if uncut else None
    if config.architecture is not None and made["from_teacher"]["weights"]:
        origins = evenly_spaced(teacher.config.num_hidden_layers, student.config.num_hidden_layers)
    return Distillation(student, source, config, origins=origins, probe_BT=torch.from_numpy(rows_NT[:4])), metadata
