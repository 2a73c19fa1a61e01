"""A dense model with one part pruned at a time: its loss on held-out rows, the blocks before that part not run again.

    ids_NT --blocks 0..i-1, dense: run once, kept--> hidden_NTD --block i, pruned--> --blocks i+1.., dense--> loss_N

What flows into block i is the same for every way of pruning block i, so it is kept and handed on by the model's own
forward pass in place of the blocks before (masks, positions, the head and whatever else the family does stay its own).
A pruned weight is put in a parameter's place and the old tensor put back, so that the model is bit for bit what it was.

Memory: the model in float32, N * T * D of hidden states, and, for a criterion that reads Gram matrices, one for every
tensor that is fed to a linear.

    N rows    T tokens    D hidden width    V vocabulary
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.checkpoints.loading import load_model
from compress.digests import seed_of
from compress.models.block_linears import BlockLinear, block_linears, blocks, linears_of
from compress.models.calibration import InputCollector, Inputs, Reads
from compress.pruning.config import CRITERIA, SensitivityConfig, SparsityLevel
from compress.pruning.criteria import pruned
from compress.pruning.masks import choose
from compress.pruning.sensitivity import Curve, Point, Sensitivity
from compress.pruning.sparsity import Amount
from compress.stage import Progress, Silent, StageError, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Memoize = Callable[[str, str, Callable[[], list[float]]], list[float]]
"""(part, level, measure) -> the loss of each held-out row, measured now or noted earlier."""
AT_ONCE = 2048
"""Tokens whose logits are held at once."""
Found = tuple[str, int, dict[SparsityLevel, list[float]]]
"""(name, weights, level -> loss_N) of one part."""


class Ablation:
    """A checkpoint, the rows it is measured on, and what its linears are fed.

    Raises:
        CheckpointError: the folder holds no dense checkpoint.
        StageError: a linear is never run, so nothing can be said of it.
    """

    def __init__(self, folder: Path, ids_NT: NDArray[np.int64], config: SensitivityConfig) -> None:
        self.model = load_model(folder)
        self.criterion = CRITERIA[config.criterion]
        self.amounts = config.amounts()
        self.wants_kinds = config.kinds
        self.held_out = torch.from_numpy(ids_NT[-config.held_out :])
        self.inputs = linear_inputs(self.model, torch.from_numpy(ids_NT[: -config.held_out]), self.criterion.reads)

    def work(self) -> int:
        """How many times a block is run on the held-out rows, about."""
        depth = len(blocks(self.model))
        whole = len(self._by_kind()) if self.wants_kinds else 0
        return len(self.amounts) * (depth * (depth + 1) // 2 + depth * whole)

    def dense(self) -> list[float]:
        """loss_N of the model as it is."""
        return Prefix(self.model, self.held_out).loss_N().tolist()

    def blocks(self, memoize: Memoize, task: Task) -> Iterator[Found]:
        """Every block, first to last."""
        prefix = Prefix(self.model, self.held_out)
        for index, (name, module) in enumerate(blocks(self.model)):
            linears = list(linears_of(name, module))
            yield name, _size(linears), self._levels(name, linears, prefix, memoize, task)
            if index + 1 < len(blocks(self.model)):
                prefix.advance()

    def kinds(self, memoize: Memoize, task: Task) -> Iterator[Found]:
        """Every kind of linear, in the order in which a block has them; none where they are not wanted."""
        prefix = Prefix(self.model, self.held_out)
        for kind, linears in self._by_kind().items() if self.wants_kinds else ():
            yield kind, _size(linears), self._levels(kind, linears, prefix, memoize, task)

    def _levels(
        self, part: str, linears: list[BlockLinear], prefix: "Prefix", memoize: Memoize, task: Task
    ) -> dict[SparsityLevel, list[float]]:
        found = {}
        for level, amount in self.amounts.items():
            found[level] = memoize(part, str(level), partial(self._loss_N, linears, amount, prefix))
            task.advance(len(blocks(self.model)) - prefix.first, note=f"{part} {level}: {np.mean(found[level]):.3f}")
        return found

    def _loss_N(self, linears: list[BlockLinear], amount: Amount, prefix: "Prefix") -> list[float]:
        with self._pruned(linears, amount):
            return prefix.loss_N().tolist()

    @contextmanager
    def _pruned(self, linears: list[BlockLinear], amount: Amount) -> Iterator[None]:
        """The model with these linears pruned."""
        dense = [linear.parameter.data for linear in linears]
        try:
            for linear in linears:
                weight_OI = self._prune(linear, amount)
                linear.parameter.data = weight_OI.T.contiguous() if linear.transposed else weight_OI
            yield
        finally:
            for linear, weight in zip(linears, dense, strict=True):
                linear.parameter.data = weight

    @torch.no_grad()
    def _prune(self, linear: BlockLinear, amount: Amount) -> Tensor:
        try:
            return pruned(self.criterion, linear.weight_OI(), self.inputs[linear.name], choose(amount))
        except ValueError as error:
            raise StageError(f"{linear.name}: cannot be pruned: {error}") from error

    def _by_kind(self) -> dict[str, list[BlockLinear]]:
        found: dict[str, list[BlockLinear]] = {}
        for name, module in blocks(self.model):
            for linear in linears_of(name, module):
                found.setdefault(linear.name.removeprefix(f"{name}."), []).append(linear)
        return found


class Prefix:
    """Rows, and what flows into the block whose turn it is; the blocks before it are not run again."""

    def __init__(self, model: "PreTrainedModel", ids_NT: Tensor) -> None:
        self.model, self.ids_NT = model, ids_NT
        self.first = 0
        """The block whose turn it is."""
        self._modules = [module for _, module in blocks(model)]
        self._kept_NTD: Tensor | None = None
        self._in_tuple = False

    @torch.inference_mode()
    def loss_N(self) -> Tensor:
        """Mean negative log-likelihood (nats) of each row's tokens after its first."""
        parts = []
        for rows in self._batches():
            ids_BT = self.ids_NT[rows]
            with self._handing_on(rows):
                logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
            loss_BT = nn.functional.cross_entropy(logits_BTV[:, :-1].mT, ids_BT[:, 1:], reduction="none")
            parts.append(loss_BT.double().mean(dim=1))
        return torch.cat(parts)

    @torch.inference_mode()
    def advance(self) -> None:
        """Run the block whose turn it is, and go on to the next."""
        parts: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)
            parts.append(output[0] if self._in_tuple else output)
            raise _ReachedError

        hook = self._modules[self.first].register_forward_hook(stop)
        try:
            for rows in self._batches():
                with self._handing_on(rows), suppress(_ReachedError):
                    self.model.base_model(input_ids=self.ids_NT[rows], use_cache=False)
        finally:
            hook.remove()
        self._kept_NTD = torch.cat(parts)
        self.first += 1

    def _batches(self) -> Iterable[slice]:
        rows, tokens = self.ids_NT.shape
        each = max(1, AT_ONCE // tokens)
        return (slice(start, start + each) for start in range(0, rows, each))

    @contextmanager
    def _handing_on(self, rows: slice) -> Iterator[None]:
        """The model, in which the blocks before the current one give what is kept of these rows."""

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            assert self._kept_NTD is not None
            return (self._kept_NTD[rows], None) if self._in_tuple else self._kept_NTD[rows]

        for module in self._modules[: self.first]:
            module.forward = hand_on  # for one pass
        try:
            yield
        finally:
            for module in self._modules[: self.first]:
                del module.forward  # the class's own again


class _ReachedError(Exception):
    """Ends a forward pass whose rest is of no interest."""


@torch.inference_mode()
def linear_inputs(model: "PreTrainedModel", ids_NT: Tensor, reads: Reads) -> dict[str, Inputs]:
    """What every block linear is fed on these rows, by its name; linears that are fed one tensor share it.

    Raises:
        StageError: a linear is never run.
    """
    linears = {linear.parameter: linear.name for linear in block_linears(model)}
    if reads == "nothing":
        return {name: Inputs(seed=seed_of(name)) for name in linears.values()}
    found: dict[str, Inputs] = {}
    inputs = InputCollector(reads)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[linears[module.weight]] = inputs(args[0])  # type: ignore[index]  # a linear's weight is a parameter

    modules = [module for module in model.modules() if getattr(module, "weight", None) in linears]
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        model.base_model(input_ids=ids_NT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    missing = sorted(set(linears.values()) - set(found))
    if missing:
        raise StageError(f"{missing[0]}: expected the linear to be run on the calibration text, but nothing reaches it")
    return found


def _size(linears: Iterable[BlockLinear]) -> int:
    return sum(linear.parameter.numel() for linear in linears)


def measure_sensitivity(
    folder: Path,
    ids_NT: NDArray[np.int64],
    config: SensitivityConfig | None = None,
    *,
    notes: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Prune every part of the dense checkpoint in `folder` at every level, one at a time, and measure the loss.

    The whole model is held in memory in float32. For L blocks this runs (L / 2 + number of kinds) * number of levels
    times the model on the held-out rows.

    Args:
        ids_NT: rows of token ids: the last `config.held_out` of them are held out, the others calibrate.
        notes: a JSON file of these arguments' own, in which each loss is noted as it is taken, and looked up when it is
            asked for again.

    Raises:
        CheckpointError: the folder holds no dense checkpoint.
        StageError: there are too few rows, or a pattern does not fit a linear.
    """
    config = config or SensitivityConfig()
    if len(ids_NT) <= config.held_out:
        raise StageError(
            f"sensitivity: expected more than the {config.held_out} rows that are held out, got {len(ids_NT)}; "
            "give more rows"
        )
    ablation = Ablation(folder, ids_NT, config)
    taken = _Notes(notes)
    dense = taken("dense", "dense", ablation.dense)
    with (progress or Silent()).task("sensitivity", ablation.work()) as task:
        blocks = [_curve(name, size, found, dense) for name, size, found in ablation.blocks(taken, task)]
        kinds = [_curve(name, size, found, dense) for name, size, found in ablation.kinds(taken, task)]
    return Sensitivity(
        criterion=config.criterion,
        scope=config.scope,
        calibration_tokens=ids_NT[: -config.held_out].size,
        held_out_tokens=config.held_out * (ids_NT.shape[1] - 1),
        dense=float(np.mean(dense)),
        blocks=tuple(blocks),
        kinds=tuple(kinds),
    )


def _curve(name: str, parameters: int, found: dict[SparsityLevel, list[float]], dense_N: list[float]) -> Curve:
    points = []
    for level, loss_N in found.items():
        increase_N = np.subtract(loss_N, dense_N)
        error = float(increase_N.std(ddof=1)) / len(increase_N) ** 0.5
        increase = float(increase_N.mean())
        points.append(Point(level=level, loss=float(np.mean(loss_N)), increase=increase, error=error))
    return Curve(name=name, parameters=parameters, points=tuple(points))


class _Notes:
    """Losses that were taken already, in a file that is replaced as a whole."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.losses: dict[str, list[float]] = {}
        if file is not None and file.is_file():
            self.losses = json.loads(file.read_text(encoding="utf-8"))

    def __call__(self, part: str, level: str, measure: Callable[[], list[float]]) -> list[float]:
        key = f"{part} {level}"
        if key not in self.losses:
            self.losses[key] = measure()
            self._write()
        return self.losses[key]

    def _write(self) -> None:
        if self.file is None:
            return
        unfinished = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(self.losses), encoding="utf-8")
        unfinished.replace(self.file)
