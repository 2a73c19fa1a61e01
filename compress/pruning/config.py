"""What pruning lets one choose, and its methods: which weights of the block linears go.

The registry of criteria is `CRITERIA`; their functions are in `criteria.py` and `sparsegpt.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from compress.pruning.sparsity import Amount, AmountConfig
from compress.registry import OneOf, lazy
from compress.stage import PASSES, Stage, StageConfig, StageInputName

if TYPE_CHECKING:
    from compress.models.calibration import Reads

ROWS_TO_SPLIT = 4
"""Fewer rows cannot both calibrate and tell what it cost."""
TRIAL_LENGTH, TRIALS = 128, 2
"""Tokens of each calibration row that the blocks' sensitivities are measured on, and sparsities that are tried."""
SparsityLevel = float | str
"""A share of zeros such as 0.5, or a pattern such as "2:4"."""


@dataclass(frozen=True)
class Criterion:
    """One way to choose the weights that go."""

    summary: str
    """One line for `demitasse methods`."""
    reads: "Reads"
    """What it must know of the linear's inputs."""
    score: Callable[..., Any]
    """(weight_OI, inputs) -> score_OI, small = unimportant."""
    refit: Callable[..., Any] | None = None
    """(weight_OI, inputs, choose) -> a new weight_OI with exact zeros, where those that stay make up for those that go;
    None: they stay as they are.
    """


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(
        "the weight's absolute value, blind to its inputs", "nothing", lazy("compress.pruning.criteria:magnitude")
    ),
    "wanda": Criterion(
        "the weight times the length of its input on calibration text", "norms", lazy("compress.pruning.criteria:wanda")
    ),
    "sparsegpt": Criterion(
        "the error that the other weights cannot make up for; they do make up for the rest",
        "gram",
        lazy("compress.pruning.sparsegpt:score"),
        lazy("compress.pruning.sparsegpt:prune"),
    ),
    "random": Criterion("lots from the seed: the control", "nothing", lazy("compress.pruning.criteria:random")),
}


class PruneConfig(AmountConfig):
    """Set the least important weights to zero."""

    criterion: Annotated[str, OneOf(CRITERIA)] = "magnitude"
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
        return self.scored_on_text() or self.allocation == "sensitivity"

    def scored_on_text(self) -> bool:
        """Whether the criterion looks at what the linears are fed."""
        return CRITERIA[self.criterion].reads != "nothing"


def inputs_read(config: PruneConfig) -> frozenset[StageInputName]:
    """Calibration text, where these knobs look at what the linears are fed."""
    return frozenset({"calibration_text"}) if config.reads_text() else frozenset()


def tokens_run(config: PruneConfig, context: int, layers: int) -> float:
    """Of the criterion, and of the blocks' sensitivities: each trial runs the blocks behind it, half on the average."""
    length = min(config.length, context)
    scored = config.rows * length * PASSES[CRITERIA[config.criterion].reads]
    if config.allocation == "uniform":
        return scored
    tried = min(TRIAL_LENGTH, length)
    return scored + tried * (config.rows + config.held_out() * TRIALS * layers / 2)


class SensitivityConfig(StageConfig):
    """What is tried, and on how much text."""

    criterion: Annotated[str, OneOf(CRITERIA)] = "wanda"
    """How the weights that go are chosen."""
    sparsities: tuple[SparsityLevel, ...] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Shares of zeros to try, and patterns such as "2:4"."""
    scope: Literal["row", "layer"] = "row"
    """Where a share is counted: each output row, or each matrix."""
    rows: int = Field(default=16, ge=1)
    """Rows of text that tell the criterion what each linear is fed."""
    held_out: int = Field(default=8, ge=2)
    """Rows of text, after those, that the loss is taken on."""
    length: int = Field(default=256, ge=2)
    """Tokens per row."""
    kinds: bool = True
    """Look at each kind of linear as well as at each block."""

    @field_validator("sparsities")
    @classmethod
    def _sparsities(cls, levels: tuple[SparsityLevel, ...]) -> tuple[SparsityLevel, ...]:
        for level in levels:
            _knobs(level, "row")
        return tuple(sorted(set(levels), key=lambda level: (isinstance(level, str), level)))

    def amounts(self) -> dict[SparsityLevel, Amount]:
        """Each level as a pruning method takes it."""
        return {level: _knobs(level, self.scope).amount() for level in self.sparsities}


def _knobs(level: SparsityLevel, scope: Literal["row", "layer"]) -> AmountConfig:
    if isinstance(level, str):
        return AmountConfig(pattern=level)
    if not 0 < level < 1:
        raise ValueError(f'expected shares between 0 and 1, or patterns such as "2:4", got {level}')
    return AmountConfig(sparsity=level, scope=scope)


PRUNE = Stage(
    kind="prune",
    summary="set the least important weights to zero: a share of them, or N of every M",
    version=3,
    config=PruneConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=lazy("compress.pruning.stage:run"),
    inputs_read=inputs_read,
    tokens_run=tokens_run,
    libraries=("torch", "transformers"),
)
