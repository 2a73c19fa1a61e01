"""What a student minimizes: the weighted losses between it and its teacher.

    ids_BT --student--> hidden states --+--> chunked losses over the vocabulary
           --teacher--> hidden states --+      (or what was written down of it, by the rows' indices)
                                        +--> losses between layers, from what hooks saw on the way

Weights may change along the steps. The teacher is no part of the module: it is neither trained nor saved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.checkpoints.weight_files import weight_files
from compress.digests import digest_file, digest_of
from compress.distillation.config import LAYER_LOSSES, DistillConfig, Fade
from compress.distillation.layer_losses import LayerLosses, layer_pairs
from compress.distillation.teacher_cache import StoredTeacher
from compress.stage import StageError, StageInput, StageMetadata
from compress.training.distributed import barrier, together
from compress.training.launch import launch
from compress.training.losses import WITHOUT_TEACHER, DenseTarget, Head, Mix, Target, chunked_loss
from compress.training.objective import Objective, ends_in_linear_head, last_hidden

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CACHE = Path("~/.cache/demitasse/teachers")


class Teacher(Protocol):
    """Says what is likely at each position."""

    def target(self, ids_BT: Tensor, row_B: Tensor | None) -> Target:
        """Of the B (T - 1) positions that predict a token, row after row."""


class Live:
    """A teacher that runs beside the student."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        if not ends_in_linear_head(model):
            raise _no_linear_head(model)

    def target(self, ids_BT: Tensor, row_B: Tensor | None) -> DenseTarget:
        if self.model.device != ids_BT.device:
            nn.Module.to(self.model, ids_BT.device)
        with torch.no_grad():
            hidden_ND = last_hidden(self.model, ids_BT)
        return DenseTarget(hidden_ND, Head.of(self.model))


class Stored:
    """A teacher that ran once, over these very rows."""

    def __init__(self, store: StoredTeacher) -> None:
        self.store = store

    def target(self, ids_BT: Tensor, row_B: Tensor | None) -> Target:
        assert row_B is not None
        return self.store.targets(row_B.cpu()).to(ids_BT.device)


def cached(
    config: DistillConfig, given: StageInput, teacher: PreTrainedModel, rows_NT: "NDArray[np.int64]"
) -> tuple[Stored, StageMetadata]:
    """The teacher as it was written down, by this run if by no other."""
    assert config.stored is not None
    assert given.teacher is not None
    if not ends_in_linear_head(teacher):
        raise _no_linear_head(teacher)
    if config.device == "cuda":
        nn.Module.to(teacher, config.device)
    method = {"sampled": config.stored.draws} if config.stored.draws else {"top_k": config.stored.top_k}
    with together(config.device):
        store = StoredTeacher.obtain(
            teacher,
            rows_NT,
            root=(config.stored.folder or CACHE).expanduser(),
            teacher_digest=_digest(given.teacher),
            method={name: amount for name, amount in method.items() if amount is not None},
            temperature=config.temperature,
            seed=given.seed,
            batch=max(1, config.batch // config.accumulate),
            progress=given.progress,
            rank=launch().rank,
            world=launch().world,
            barrier=barrier,
        )
    return Stored(store), {"stored_teacher": store.metadata()}


class Distillation(Objective):
    """The losses of a student against its teacher."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher,
        config: DistillConfig,
        *,
        origins: list[int] | None,
        probe_BT: Tensor,
    ) -> None:
        """
        Args:
            origins: the teacher's layers that the student's came from, where they are known.
            probe_BT: some rows of the training text, on which projections are fitted to begin with.
        """
        super().__init__(student)
        if not self.linear_head:
            raise _no_linear_head(student)
        self.teacher = teacher
        self.knobs = config  # not `config`: the Trainer takes that for a model's
        self.losses: Mapping[str, float | Fade] = {str(name): weight for name, weight in config.losses.items()}
        self.layers: LayerLosses | None = None
        between = [name for name in self.losses if name in LAYER_LOSSES]
        if between:
            assert isinstance(teacher, Live)
            depths = student.config.num_hidden_layers, teacher.model.config.num_hidden_layers
            pairs = layer_pairs(*depths, kept=origins, listed=config.layer_map)
            self.layers = LayerLosses(student, teacher.model, dict.fromkeys(between, 1.0), pairs)
            with torch.no_grad():
                last_hidden(student, probe_BT)
                last_hidden(teacher.model, probe_BT)
            self.layers.fit_projections()
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def weights(self) -> dict[str, float]:
        """The weight of each loss now."""
        return {name: weight_at(weight, self.progress) for name, weight in self.losses.items()}

    def loss(self, ids_BT: Tensor, row_B: Tensor | None) -> Tensor:
        weights, next_N = self.weights(), ids_BT[:, 1:].flatten()
        of_logits = {name: weight for name, weight in weights.items() if name not in LAYER_LOSSES}
        needs_teacher = bool(set(weights) - WITHOUT_TEACHER)
        target = self.teacher.target(ids_BT, row_B) if needs_teacher else None
        hidden_ND = last_hidden(self.model, ids_BT)
        total, parts = hidden_ND.new_zeros(()), dict[str, Tensor]()
        if of_logits:
            mix = Mix(weights=of_logits, temperature=self.knobs.temperature, skew=self.knobs.skew)
            total, values_L = chunked_loss(hidden_ND, Head.of(self.model), target, next_N, mix)
            total = total / len(next_N)
            parts = dict(zip(of_logits, values_L / len(next_N), strict=True))
        if self.layers is not None:
            for name, value in self.layers().items():
                total, parts[name] = total + weights[name] * value, value.detach()
        self._note(parts)
        return total

    def next_token_loss(self, ids_BT: Tensor) -> Tensor:
        loss = super().next_token_loss(ids_BT)
        if self.layers is not None:
            self.layers.clear()
        return loss

    def _note(self, parts: Mapping[str, Tensor]) -> None:
        if len(parts) > 1:
            self._count += 1
            self._sums = {name: self._sums.get(name, 0) + value for name, value in parts.items()}

    def frozen(self) -> list[PreTrainedModel]:
        return [self.teacher.model] if isinstance(self.teacher, Live) else []

    def figures(self) -> dict[str, float]:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def close(self) -> None:
        """Take the hooks off the models."""
        if self.layers is not None:
            self.layers.remove()


def weight_at(weight: float | Fade, progress: float) -> float:
    """What a weight is when `progress` of the steps are done."""
    if isinstance(weight, float | int):
        return float(weight)
    return weight.start + (weight.end - weight.start) * min(progress / weight.over, 1.0)


def _digest(folder: Path) -> str:
    files = [folder / "config.json", *weight_files(folder)]
    return digest_of([digest_file(file) for file in files])


def _no_linear_head(model: PreTrainedModel) -> StageError:
    return StageError(f"distill: {model.config.model_type} changes its logits after the head, which is not supported")
