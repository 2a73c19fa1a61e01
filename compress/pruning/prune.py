"""Pruning: set the least important weights of the block linears to exactly zero, without training.

    criterion   magnitude | random   need no text
                wanda | sparsegpt    read the linears' inputs on `data.calibration`, in one pass through the model

The result is the same architecture with zeros in it: it stores smaller, it does not run faster in ONNX Runtime, and
later training stages keep the zeros (see `zeros.py`). Every other tensor stays byte for byte as it was.

Which criterion: `sparsegpt` if the model is to be used as it comes out (half of SmolLM2-135M's weights gone, WikiText-2
perplexity 25 -> 48; magnitude 25 -> 323). `magnitude` is the default because it is the only sensible one that needs no
text; beyond about 30 % follow it with `distill`, or prune while training (`distill: {prune: ...}`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from compress.pruning.amount import LATENCY, Amount, AmountConfig
from compress.stage import Facts, Material, Stage, StageError, StageInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.blockwise import BlockWalk
    from compress.pruning.targets import Target

READS_TEXT = frozenset({"wanda", "sparsegpt"})
ROWS_TO_SPLIT = 4
"""Fewer rows cannot both calibrate and tell what it cost."""
TRIAL_LENGTH = 128
"""Tokens of each calibration row that the blocks' sensitivities are measured on."""


class PruneConfig(AmountConfig):
    """Set the least important weights to zero."""

    criterion: Literal["magnitude", "wanda", "sparsegpt", "random"] = "magnitude"
    """How a weight's importance is scored; wanda and sparsegpt read calibration text and keep far more quality. Wanda
    counts within each row unless `scope` says otherwise.
    """
    linears: list[str] = Field(default=["*"], min_length=1)
    """Which block linears, as globs over their names in the checkpoint, such as "*.mlp.*"."""
    layers: dict[str, float] = Field(default_factory=dict)
    """Another sparsity for some of them: glob -> sparsity, such as {"model.layers.0.*": 0.3}; the last match holds."""
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    """The same sparsity for every block, or more where it costs less, as measured on the calibration text."""
    include: list[str] = Field(default=[])
    """Further matrices, as globs over parameter names, such as "*embed_tokens.weight": by magnitude, each alone."""
    rows: int = Field(default=32, ge=1)
    """Sequences of calibration text."""
    length: int = Field(default=512, ge=8)
    """Tokens per sequence of calibration text, no more than the model's context."""

    @model_validator(mode="before")
    @classmethod
    def _scope_of_the_criterion(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("criterion") == "wanda" and "scope" not in value:
            return {**value, "scope": "row"}
        return value

    @model_validator(mode="after")
    def _one_count(self) -> "PruneConfig":
        if any(not 0 <= part < 1 for part in self.layers.values()):
            raise ValueError("layers: expected sparsities from 0 to below 1")
        apart = [name for name, set_ in (("layers", self.layers), ("allocation", self.allocation != "uniform")) if set_]
        if len(apart) == 2:
            raise ValueError("expected either `layers` or `allocation: sensitivity`: both set each layer's sparsity")
        if self.allocation == "sensitivity" and self.rows < ROWS_TO_SPLIT:
            raise ValueError(f"rows: expected at least {ROWS_TO_SPLIT} with `allocation: sensitivity`, got {self.rows}")
        if apart and (self.pattern is not None or self.scope == "global"):
            raise ValueError(f"{apart[0]}: expected `sparsity` with scope row or layer beside it")
        if self.criterion == "sparsegpt" and self.sparsity is not None and self.scope == "global":
            raise ValueError(
                "scope: global: sparsegpt prunes one matrix after the other; choose row or layer, or criterion wanda"
            )
        return self

    def held_out(self) -> int:
        """Rows of the calibration text that the blocks' sensitivities are measured on."""
        return max(2, self.rows // 4)

    def reads_text(self) -> bool:
        """Whether it runs the model on calibration text."""
        return self.criterion in READS_TEXT or self.allocation == "sensitivity"


def materials(config: PruneConfig) -> frozenset[Material]:
    """Calibration text, where these knobs look at what the linears are fed."""
    return frozenset({"calibration_text"}) if config.reads_text() else frozenset()


def run(config: PruneConfig, given: StageInput) -> Facts:
    """Leaves a dense checkpoint in the source's own precision, with zeros."""
    from compress.blockwise import BlockWalk
    from compress.pruning.prune_walk import prune_blocks, prune_matrix, prune_whole
    from compress.pruning.sparsify import CRITERIA
    from compress.pruning.targets import block_targets, extra_targets

    assert given.source is not None
    ids_NT = _calibration(config, given)
    walk = BlockWalk(given.source, ids_NT if config.criterion in READS_TEXT else None)
    shares, measured = _shares(config, given, ids_NT)
    targets = block_targets(config, walk.model, shares)
    extras = extra_targets(config, walk.model)
    walk.files.copy_to(given.out)
    with given.progress.task("prune", total=len(walk) + len(extras)) as task:
        whole = config.sparsity is not None and config.scope == "global"
        (prune_whole if whole else prune_blocks)(walk, given.out, CRITERIA[config.criterion], targets, given.seed, task)
        for target in extras:
            prune_matrix(walk.files, given.out, config.criterion, target, given.seed)
            task.advance()
    tokens = {} if ids_NT is None else {"calibration_tokens": ids_NT.size}
    return {**_counted(config, walk, given.out, [*targets.values(), *extras]), **tokens, **measured, "latency": LATENCY}


def _calibration(config: PruneConfig, given: StageInput) -> "NDArray[np.int64] | None":
    if not config.reads_text():
        return None
    from compress.calibration import rows_of_stage

    return rows_of_stage("prune", given, config.rows, config.length)


def _shares(
    config: PruneConfig, given: StageInput, ids_NT: "NDArray[np.int64] | None"
) -> tuple[dict[str, float], Facts]:
    """Block's name -> its sparsity, where the blocks' sensitivities decide, and what they are; else both empty.

    Every block is tried at two sparsities with the rest of the model behind it, so the rows are cut short.
    """
    if config.allocation == "uniform":
        return {}, {}
    from compress.pruning.allocation import allocate, levels
    from compress.pruning.sensitivity import SensitivityConfig, measure_sensitivity

    assert given.source is not None
    assert ids_NT is not None
    assert config.sparsity is not None
    assert config.scope != "global"
    wanda = config.criterion == "sparsegpt"  # which would refit every matrix once for each trial
    ids_NT = ids_NT[:, :TRIAL_LENGTH]
    asked = SensitivityConfig(
        criterion="wanda" if wanda else config.criterion,
        sparsities=levels(config.sparsity),
        scope="row" if wanda else config.scope,
        rows=len(ids_NT) - config.held_out(),
        held_out=config.held_out(),
        length=ids_NT.shape[1],
        kinds=False,
    )
    notes = given.scratch / "sensitivity.json"
    measured = measure_sensitivity(given.source, ids_NT, asked, notes=notes, progress=given.progress)
    return allocate(measured, config.sparsity), {"sensitivity": measured.model_dump(mode="json")}


def _counted(config: PruneConfig, walk: "BlockWalk", out: Path, targets: "list[Target]") -> Facts:
    """What was asked and what came, counted in the files that were written.

    Raises:
        StageError: nothing did.
    """
    sizes = {target.name: walk.model.get_parameter(target.name).numel() for target in targets}
    zeros = {name: size - walk.files.nonzero(out, name) for name, size in sizes.items()}
    if not sum(zeros.values()):
        raise StageError(
            f"prune: not one weight of {', '.join(list(sizes)[:4])} was set to zero; ask for a higher `sparsity`"
        )
    return {
        "criterion": config.criterion,
        "asked": config.sparsity or config.pattern,
        "sparsity": sum(zeros.values()) / sum(sizes.values()),
        "zeros": sum(zeros.values()),
        "tensors": {
            target.name: {"asked": _asked(target.amount), "sparsity": zeros[target.name] / sizes[target.name]}
            for target in targets
        },
    }


def _asked(amount: Amount) -> float | None:
    return amount.sparsity if amount.pattern is None else 1 - amount.pattern[0] / amount.pattern[1]


PRUNE = Stage(
    kind="prune",
    summary="set the least important weights to zero: a share of them, or N of every M",
    version=2,
    config=PruneConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=run,
    materials=materials,
    libraries=("torch", "transformers"),
)
