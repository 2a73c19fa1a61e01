"""Training: fit a GPT from a config, with a tokenizer of its own, or fine-tune one.

The loss is the mean cross-entropy of the next token over packed documents. From nothing, `architecture` is the
model's config (the keys of its config.json) and `vocabulary` the size of the byte-level BPE that is trained on the
training text first (Sennrich et al., arXiv 1508.07909; byte level as in GPT-2).
With `prune` the model becomes sparse as it trains (`pruning_schedule.py`); zeros that it already has stay in any case.

Not covered: data that does not fit into memory.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints.config import in_one_line, unknown_type
from compress.checkpoints.folder import load_tokenizer, save_checkpoint
from compress.checkpoints.loading import load_model
from compress.stage import StageError, StageInput, StageMetadata
from compress.text import before_text, check_ids, end_of_text, pack, read_documents, tokenize
from compress.training.config import TrainConfig, TrainingKnobs
from compress.training.loop import Schedule, fit
from compress.training.objective import Objective
from compress.training.sparsity_masks import pruning_metadata
from compress.training.tokenizer import train_tokenizer

HELD_OUT_ROWS = 128


def run(config: TrainConfig, given: StageInput) -> StageMetadata:
    """Leaves a dense checkpoint, trained on `given.train_text`."""
    if given.train_text is None:
        raise StageError("train: expected a training text (data.train), got none")
    if config.architecture is not None and given.source is not None:
        raise StageError("train: expected a model to fine-tune or `architecture` for a new one, got both")
    documents = read_documents(given.train_text)
    model, tokenizer = _fresh(config, documents, given.seed) if config.architecture is not None else _source(given)
    rows_NT = pack(tokenize(documents, tokenizer), config.length, end_of_text(tokenizer), before_text(tokenizer))
    check_ids(rows_NT, tokenizer, model.config.vocab_size)
    schedule = Schedule.of(config)
    history = fit(
        Objective(model),
        rows_NT,
        schedule,
        scratch=given.scratch,
        seed=given.seed,
        progress=given.progress,
        label="train",
        held_out_NT=held_out_rows(config, given, tokenizer),
        logs=given.logs,
    )
    save_checkpoint(model, tokenizer, given.out, dtype=config.save_dtype)
    pruned = pruning_metadata(config.prune, schedule.steps(config.length), model)
    return {"text_tokens": int(rows_NT.size), **pruned, "history": history}


def held_out_rows(
    config: TrainingKnobs, given: StageInput, tokenizer: PreTrainedTokenizerBase
) -> NDArray[np.int64] | None:
    """The first rows of the calibration text, where the loss on them is asked for."""
    if not config.held_out:
        return None
    if given.calibration_text is None:
        raise StageError("held_out: expected a calibration text (data.calibration), got none")
    documents = tokenize(read_documents(given.calibration_text), tokenizer)
    return pack(documents, config.length, end_of_text(tokenizer), before_text(tokenizer))[:HELD_OUT_ROWS]


def _source(given: StageInput) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if given.source is None:
        raise StageError("train: expected a source model to fine-tune, or `architecture` to fit a new one")
    return load_model(given.source), load_tokenizer(given.source)


def _fresh(config: TrainConfig, documents: list[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    architecture = dict(config.architecture or {})
    model_type = architecture.pop("model_type", None)
    if unknown := unknown_type(model_type):
        raise StageError(f"train: architecture: {unknown}")
    tokenizer = train_tokenizer(documents, config.vocabulary)
    ends = end_of_text(tokenizer)
    try:
        shape = AutoConfig.for_model(
            model_type, vocab_size=len(tokenizer), bos_token_id=ends, eos_token_id=ends, **architecture
        )
        shape._attn_implementation = None  # what is best here: a kernel is no part of the shape
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(shape), tokenizer
    except MemoryError:
        raise
    except Exception as error:  # config classes and modules check themselves, each with errors of its own
        raise StageError(f"train: architecture: {in_one_line(error)}") from error
