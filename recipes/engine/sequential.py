"""`demitasse run --until-decided MINUTES`: measure on while a gate is open, as `evaluation/stopping_rule.py` says.

    rows --judge--> INCONCLUSIVE --next_round--> a recipe with more blocks or more windows --measured--> rows --> ...

A round is the same recipe that asks for more: what was timed is gone on with, and text is scored anew, since more
windows spread over the same text are other windows. Every look, the first too, is judged with bounds for `LOOKS` looks,
and what blocks decide for those as well that the timing itself takes (`StoppingRule`).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evaluation.gate import GateResult, judge
from evaluation.report import Row
from evaluation.stopping_rule import LOOKS, StoppingRule, blocks_at_looks, next_round
from recipes.config.recipe import BenchmarkConfig, Recipe

TEXT = "perplexity"
"""The metric whose samples are the documents."""
SECONDS_A_MINUTE = 60.0


@dataclass(kw_only=True)
class Patience:
    """How long to go on measuring after the first look; 0 minutes: judge once."""

    recipe: Recipe
    """As it was asked for at first."""
    minutes: float = 0.0
    log: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    looked: int = 0
    _started: float = field(default=0.0, init=False)
    _documents: int = field(default=0, init=False)

    @property
    def further(self) -> int:
        """How many looks there may be after the first one."""
        return LOOKS - 1 if self.minutes else 0

    @property
    def looks(self) -> dict[str, int]:
        """How many looks the bounds are for, by the kind of sample; once where nothing is said."""
        looks = {"documents": 1 + self.further, "blocks": len(self._blocks) + self.further}
        return {kind: count for kind, count in looks.items() if count > 1}

    @property
    def _blocks(self) -> tuple[int, ...]:
        return () if self.recipe.benchmark is None else blocks_at_looks(self.recipe.benchmark.blocks)

    def enough(self, benchmark: BenchmarkConfig) -> StoppingRule:
        """When the timing may stop, of as many blocks as are asked for now."""
        blocks = tuple(dict.fromkeys((*self._blocks, benchmark.blocks)))
        return StoppingRule(gates=self.recipe.gate, blocks=blocks, looks=self.looks.get("blocks", 1))

    def judge(self, recipe: Recipe, row: Row) -> list[GateResult]:
        """The gates on a row."""
        if not self.looked:  # what the stages took is no part of the patience
            self._started = self.clock()
        self.looked += 1
        return judge(recipe.gate, {found.metric: found for found in row.measurements}, looks=self.looks)

    def more(self, recipe: Recipe, row: Row, gates: list[GateResult], seconds: Mapping[str, float]) -> Recipe | None:
        """The recipe that asks for as much more as would decide; None: stop.

        Args:
            seconds: what was spent on the "blocks" and on the "documents" that there are.
        """
        if not self.minutes:
            return None
        have = self._have(recipe, row)
        each = {kind: seconds.get(kind, 0.0) / count for kind, count in have.items()}
        left = self._started + self.minutes * SECONDS_A_MINUTE - self.clock()
        wanted = next_round(
            gates, have=have, seconds_each=each, seconds_left=left, looks_left=1 + self.further - self.looked
        )
        self.log(f"look {self.looked} of at most {1 + self.further}: {wanted.reason}")
        return enlarged(recipe, wanted.more, have) if wanted.more else None

    def _have(self, recipe: Recipe, row: Row) -> dict[str, int]:
        """How many samples there are of every kind that there may be more of."""
        have = {}
        if recipe.benchmark is not None:
            have["blocks"] = recipe.benchmark.blocks
        scored = row.measurement(TEXT)
        documents = 0 if scored is None else scored.samples
        if recipe.evaluate.windows is not None and documents > self._documents:  # else the text is used up
            have["documents"] = documents
        self._documents = documents
        return have


def enlarged(recipe: Recipe, more: Mapping[str, int], have: Mapping[str, int]) -> Recipe:
    """A recipe that measures that much more."""
    changes: dict[str, object] = {}
    if "blocks" in more and recipe.benchmark is not None:
        blocks = recipe.benchmark.blocks + more["blocks"]
        changes["benchmark"] = recipe.benchmark.model_copy(update={"blocks": blocks})
    if "documents" in more and recipe.evaluate.windows is not None:
        share = (have["documents"] + more["documents"]) / have["documents"]
        windows = math.ceil(recipe.evaluate.windows * share)
        changes["evaluate"] = recipe.evaluate.model_copy(update={"windows": windows})
    return recipe.model_copy(update=changes)
