"""How the quality of an artifact is measured, everything a recipe's `evaluate` asks for; raw samples are kept.

    windows.npz         the test text as it was cut           of the baseline alone: all are scored on the same windows
    tokens.npz          the test text, token by token         perplexity, accuracy, agreement, KL divergence ...
    windows-NOISE.npz, tokens-NOISE.npz    under noise        typos/perplexity ...
    items-NAME.npz      a named evaluation, item by item      hellaswag/accuracy ...
    errors.json         what lost most against the baseline

Each evaluation (the text, the text under one noise, one that is named) is taken by itself, and kept as soon as it is
finished (`Keep`): a run that is killed goes on with the next, and one that names another evaluation takes only that.

`figures_of` makes the measurements of those files alone, so that `demitasse gate` and `demitasse compare` find the same
figures without any model.

Not covered: other measures of quality than those of `evaluation.quality`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress import FormatName, Progress, TextSource
from compress.checkpoints.folder import load_tokenizer
from compress.text import check_ids, read_documents
from evaluation.measurement import Measurement
from evaluation.quality import (
    NOISES,
    TokenScores,
    Windows,
    describe_noise,
    noise_measurements,
    noised,
    quality_measurements,
    score,
    worst_tokens,
)
from evaluation.quality.classification import ask_labeled
from evaluation.quality.generation import ask_generation
from evaluation.quality.per_example import PerExample, item_measurements
from evaluation.quality.token_metrics import problem_of
from recipes.config.evaluations import GenerationConfig, LabeledConfig, TaskConfig
from recipes.config.recipe import EvaluateConfig
from recipes.formats import FORMATS
from recipes.formats.base import LoadedModel, MeasureError
from recipes.formats.hidden_states import HiddenStates
from recipes.measure.quality_details import ERRORS, ITEMS
from recipes.measure.question_files import read_generation, read_labeled
from recipes.measure.text_windows import beginnings, windows_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_FILE = "tokens.npz"
CLEAN = ""
"""The name of the test text as it is, among those under noise."""
Take = Callable[[Path], str]
"""Takes one evaluation: (empty folder for its files) -> how it was taken, in words."""
Keep = Callable[[str, Take, Path], str]
"""Has one evaluation of a name taken, or finds it, and leaves its files in a folder; how it was taken."""


def taken_now(name: str, take: Take, out: Path) -> str:
    """Keep nothing: take it."""
    return take(out)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What an artifact is held against."""

    folder: Path
    format: FormatName
    scores: Path
    """Its own per-token scores, `tokens.npz`, from when it was measured itself."""


def measure_quality(
    artifact: Path,
    format: FormatName,
    *,
    baseline: Baseline | None,
    config: EvaluateConfig,
    test: TextSource,
    out: Path,
    progress: Progress,
    label: str = "measure",
    seed: int = 0,
    hidden: HiddenStates | None = None,
    keep: Keep = taken_now,
) -> list[Measurement]:
    """Measure everything that is asked for; raw samples go into the folder `out`.

    Args:
        keep: called with each evaluation, which is taken only where it calls for that.
        hidden: what is known of the baseline's layers; None: they are run for every artifact.
        baseline: None where the artifact is the baseline itself; else its own samples lie beside `baseline.scores`.

    Raises:
        MeasureError: the text or the context is too short for what is asked.
        TaskError: an evaluation's data cannot be used.
    """
    exam = _Exam(
        artifact=artifact,
        format=format,
        baseline=baseline,
        test=test,
        config=config,
        progress=progress,
        label=label,
        seed=seed,
        hidden=hidden,
    )
    methods = {name: keep(name, take, out) for name, take in exam.evaluations().items()}
    folder = None if baseline is None else baseline.scores.parent
    if folder is not None:
        exam.tell_worst_tokens(out, folder)
    return figures_of(out, folder, seed=seed, methods=methods)


def figures_of(
    folder: Path, baseline: Path | None, *, seed: int, methods: Mapping[str, str] | None = None
) -> list[Measurement]:
    """Every figure that a folder's raw samples give, held against the baseline's where it has the same.

    Where the test text was not scored in numbers, no named evaluation counts either: a model whose scores are NaN still
    generates text, and the same token again and again repeats no words.

    Args:
        methods: how the test text, each noise and each named evaluation was measured, in words; not told: "".
    """
    told = defaultdict(str, methods or {})
    scores, base = _scores(folder, CLEAN), None if baseline is None else _scores(baseline, CLEAN)
    found = quality_measurements(scores, base, method=told[CLEAN], seed=seed)
    problem = problem_of(scores, base)
    for kind in NOISES:
        if (folder / _file(kind)).is_file():
            under = _scores(folder, kind)
            base_under = (
                _scores(baseline, kind) if baseline is not None and (baseline / _file(kind)).is_file() else None
            )
            found += noise_measurements(kind, under, base_under, scores, base, method=told[kind], seed=seed)
    for file in sorted(folder.glob(f"{ITEMS}*.npz")):
        name = file.stem.removeprefix(ITEMS)
        held = None if baseline is None else baseline / file.name
        against = PerExample.load(held) if held is not None and held.is_file() else None
        asked = item_measurements(name, PerExample.load(file), against, method=told[name], seed=seed)
        found += [one.model_copy(update={"invalid": one.invalid or problem}) for one in asked]
    return found


def _scores(folder: Path, kind: str) -> TokenScores:
    return TokenScores.load(folder / _file(kind))


def _file(kind: str, what: str = "tokens") -> str:
    return f"{what}-{kind}.npz" if kind else f"{what}.npz"


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """A model that is being measured; it is opened for the first evaluation that is not there yet."""

    artifact: Path
    format: FormatName
    baseline: Baseline | None
    test: TextSource
    config: EvaluateConfig
    progress: Progress
    label: str
    seed: int
    hidden: HiddenStates | None

    @cached_property
    def model(self) -> LoadedModel:
        return FORMATS[self.format].open(self.artifact, hidden=self.hidden if self.baseline is None else None)

    @cached_property
    def against(self) -> LoadedModel | None:
        baseline = self.baseline
        return None if baseline is None else FORMATS[baseline.format].open(baseline.folder, hidden=self.hidden)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.artifact if self.baseline is None else self.baseline.folder)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the model's embedding."""
        return FORMATS[self.format].sizes(self.artifact).vocabulary

    @cached_property
    def runtime(self) -> str:
        return FORMATS[self.format].runtime(self.artifact)

    def evaluations(self) -> dict[str, Take]:
        """Everything that is asked for, by name."""
        texts = {kind: partial(self._score, kind) for kind in (CLEAN, *self.config.noises)}
        return {**texts, **{named.name: partial(self._asked, named) for named in self.config.named}}

    def _score(self, kind: str, out: Path) -> str:
        """Score the test text, as it is or under a noise; the baseline, which is measured first, cuts it for all."""
        from compress.training.malloc import kept_memory

        if self.baseline is None:
            texts = read_documents(self.test)
            noisy = noised(texts, kind, self.config.noises[kind], self.seed) if kind else texts
            self._cut(noisy).save(out / _file(kind, "windows"))
        windows = Windows.load((out if self.baseline is None else self.baseline.scores.parent) / _file(kind, "windows"))
        with (
            kept_memory(),  # scores of one batch take hundreds of megabytes, which would be faulted in for each anew
            self.progress.task(f"{self.label}: {kind}" if kind else self.label, total=len(windows)) as task,
        ):
            scores = score(
                self.model.text_logits,
                windows,
                None if self.against is None else self.against.text_logits,
                batch=self.config.batch,
                on_batch=task.advance,
            )
        scores.save(out / _file(kind))
        noise = f"; {describe_noise(kind, self.config.noises[kind], self.seed)}" if kind else ""
        return f"{self.runtime}{noise}; {windows.protocol}"

    def _cut(self, texts: Sequence[str]) -> Windows:
        config = self.config
        windows = windows_in(
            texts,
            self.tokenizer,
            length=config.window,
            stride=config.stride,
            bos=config.bos,
            count=config.windows,
            select=config.select,
            join=config.join,
        )
        check_ids(windows.ids_WT, self.tokenizer, self.vocabulary)
        return windows

    def tell_worst_tokens(self, out: Path, baseline: Path) -> None:
        """Write down what lost most."""
        windows = Windows.load(baseline / _file(CLEAN, "windows"))
        found = worst_tokens(_scores(out, CLEAN), _scores(baseline, CLEAN), windows, self._decode)
        (out / ERRORS).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")

    def _asked(self, named: TaskConfig | LabeledConfig | GenerationConfig, out: Path) -> str:
        self._ask(named).save(out / f"{ITEMS}{named.name}.npz")
        return self.runtime

    def _ask(self, named: TaskConfig | LabeledConfig | GenerationConfig) -> PerExample:
        """Ask a named evaluation."""
        try:
            if isinstance(named, TaskConfig):
                return self._ask_task(named)
            if isinstance(named, LabeledConfig):
                return self._ask_labeled(named)
            return self._ask_generation(named)
        except ValueError as error:
            raise MeasureError(f"{named.name}: {error}") from error

    def _ask_task(self, named: TaskConfig) -> PerExample:
        from recipes.measure.harness_tasks import ask_task, open_task

        total = len(open_task(named, seed=self.seed))
        with self.progress.task(f"{self.label}: {named.name}", total=total) as task:
            return ask_task(
                named,
                scorer=self.model.logits,
                generator=self.model.generate,
                tokenizer=self.tokenizer,
                prefix=self._prefix,
                context=self.model.context,
                batch=self.config.batch,
                seed=self.seed,
                on_item=task.advance,
            )

    def _ask_labeled(self, named: LabeledConfig) -> PerExample:
        prompts, labels = read_labeled(named, seed=self.seed)
        with self.progress.task(f"{self.label}: {named.name}", total=len(prompts)) as task:
            return ask_labeled(
                prompts,
                labels,
                named.answers,
                scorer=self.model.logits,
                encode=self._encode,
                context=self.model.context,
                prefix=self._prefix,
                batch=self.config.batch,
                on_item=task.advance,
            )

    def _ask_generation(self, named: GenerationConfig) -> PerExample:
        prompts, references = read_generation(named, seed=self.seed)
        with self.progress.task(f"{self.label}: {named.name}", total=len(prompts)) as task:
            return ask_generation(
                prompts,
                references,
                generator=self.model.generate,
                encode=self._encode,
                decode=self._decode,
                tokens=named.tokens,
                context=self.model.context,
                prefix=self._prefix,
                batch=self.config.batch,
                on_item=task.advance,
            )

    @property
    def _prefix(self) -> list[int]:
        return beginnings(self.tokenizer, self.config.bos)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_ids(np.asarray(ids, dtype=np.int64), self.tokenizer, self.vocabulary)
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
