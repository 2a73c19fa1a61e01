"""How the quality of an artifact is measured, everything a recipe's `evaluate` asks for; raw samples are kept.

    windows.npz         the test text as it was cut           of the baseline alone: all are scored on the same windows
    tokens.npz          the test text, token by token         perplexity, accuracy, agreement, KL divergence ...
    windows-NOISE.npz, tokens-NOISE.npz    under noise        typos/perplexity ...
    items-NAME.npz      a named evaluation, item by item      hellaswag/accuracy ...
    errors.json         what lost most against the baseline

`figures_of` makes the measurements of those files alone, so that `demitasse gate` and `demitasse compare` find the same
figures without any model.

Not covered: other measures of quality than those of `evaluation.quality`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from recipes.measure.labeled_files import read_generation, read_labeled
from recipes.measure.quality_details import ERRORS, ITEMS
from recipes.measure.text_windows import beginnings, windows_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_FILE = "tokens.npz"
CLEAN = ""
"""The name of the test text as it is, among those under noise."""


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
) -> list[Measurement]:
    """Measure everything that is asked for; raw samples go into the folder `out`.

    Args:
        hidden: what is known of the baseline's layers; None: they are run for every artifact.
        baseline: None where the artifact is the baseline itself; else its own samples lie beside `baseline.scores`.

    Raises:
        MeasureError: the text or the context is too short for what is asked.
        TaskError: an evaluation's data cannot be used.
    """
    from compress.training.malloc import kept_memory

    adapter = FORMATS[format]
    tokenizer = load_tokenizer(artifact if baseline is None else baseline.folder)
    exam = _Exam(
        model=adapter.open(artifact, hidden=hidden if baseline is None else None),
        against=None if baseline is None else FORMATS[baseline.format].open(baseline.folder, hidden=hidden),
        cut=out if baseline is None else baseline.scores.parent,
        tokenizer=tokenizer,
        vocabulary=adapter.sizes(artifact).vocabulary,
        config=config,
        out=out,
        progress=progress,
        label=label,
        seed=seed,
    )
    with kept_memory():  # scores of one batch take hundreds of megabytes, which would be faulted in for each anew
        methods = exam.score_texts(test, adapter.runtime(artifact))
    methods |= {named.name: adapter.runtime(artifact) for named in config.named}
    for named in config.named:
        exam.ask(named).save(out / f"{ITEMS}{named.name}.npz")
    folder = None if baseline is None else baseline.scores.parent
    if folder is not None:
        exam.tell_worst_tokens(folder)
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
    """A model that is being measured."""

    model: LoadedModel
    against: LoadedModel | None
    cut: Path
    """Where the windows are: written there by the baseline, which is measured first, and read by all others."""
    tokenizer: "PreTrainedTokenizerBase"
    vocabulary: int
    """Rows of the model's embedding."""
    config: EvaluateConfig
    out: Path
    progress: Progress
    label: str
    seed: int

    def score_texts(self, test: TextSource, runtime: str) -> dict[str, str]:
        """Score the test text as it is and under every noise; the method of each."""
        if self.against is None:
            texts = read_documents(test)
            self._cut(texts).save(self.cut / _file(CLEAN, "windows"))
            for kind, share in self.config.noises.items():
                self._cut(noised(texts, kind, share, self.seed)).save(self.cut / _file(kind, "windows"))
        methods = {CLEAN: self._score(CLEAN, runtime)}
        for kind, share in self.config.noises.items():
            methods[kind] = self._score(kind, f"{runtime}; {describe_noise(kind, share, self.seed)}")
        return methods

    def _score(self, kind: str, runtime: str) -> str:
        windows = self._windows(kind)
        with self.progress.task(f"{self.label}: {kind}" if kind else self.label, total=len(windows)) as task:
            scores = score(
                self.model.text_logits,
                windows,
                None if self.against is None else self.against.text_logits,
                batch=self.config.batch,
                on_batch=task.advance,
            )
        scores.save(self.out / _file(kind))
        return f"{runtime}; {windows.protocol}"

    def _windows(self, kind: str) -> Windows:
        return Windows.load(self.cut / _file(kind, "windows"))

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

    def tell_worst_tokens(self, baseline: Path) -> None:
        """Write down what lost most."""
        found = worst_tokens(
            _scores(self.out, CLEAN),
            _scores(baseline, CLEAN),
            self._windows(CLEAN),
            self._decode,
        )
        (self.out / ERRORS).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")

    def ask(self, named: TaskConfig | LabeledConfig | GenerationConfig) -> PerExample:
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
