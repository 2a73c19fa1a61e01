"""The evaluations that a recipe names: tasks, labeled text, generated text; their knobs, and what their names may be.

    evaluate:
      tasks:      [{name: hellaswag, file: hellaswag.jsonl.gz, limit: 400}, {name: lambada_openai},
                   {name: capitals, kind: exact_match, file: capitals.jsonl, context: question}]
      labeled:    [{name: sentiment, file: reviews.jsonl, prompt: "{text}\\nSentiment:",
                    answers: {positive: " positive", negative: " negative"}}]
      generation: [{name: summaries, file: articles.jsonl, prompt: "{text}\\nSummary:", reference: summary, tokens: 48}]

Files are .jsonl, .jsonl.gz or .csv. What stands in them is read in `recipes/measure/`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compress.digests import digest_file, digest_of
from compress.knobs import Knobs
from evaluation.measurement import SEPARATOR
from recipes.config.errors import one_of

EXTRA = "pip install 'demitasse[tasks]'"
"""The way out where a library for named evaluations is missing."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
LIBRARIES: dict[str, str] = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
"""What generated text needs: module -> distribution."""
Bos = Literal["auto"] | bool
AUTO: Literal["auto"] = "auto"
"""What the tokenizer itself puts before a text."""
TEXT = "{text}"
"""Stands in a prompt for the row's text."""
TaskKind = Literal["choice", "exact_match", "last_word"]
ONLY_FOR: dict[str, tuple[TaskKind, ...]] = {
    "endings": ("choice",),
    "label": ("choice",),
    "join": ("choice", "exact_match"),
    "answer": ("exact_match",),
    "until": ("exact_match",),
    "tokens": ("exact_match",),
    "ignore": ("exact_match",),
}
"""Knobs that not every kind of question from a file has."""


class TaskConfig(Knobs):
    """Questions to ask: from a file, or a task of lm-evaluation-harness."""

    libraries: ClassVar[tuple[str, ...]] = ("lm-eval", "datasets")
    """Distributions that its figures depend on, besides those that run the model."""

    name: str = Field(min_length=1)
    """What its figures are called, such as hellaswag/accuracy; without `file` also the name of a task, a group or a tag
    of lm-evaluation-harness.
    """
    file: Path | None = None
    """A .jsonl, .jsonl.gz or .csv file of questions; null: the task of that name."""
    kind: TaskKind = "choice"
    """What the file asks: choice, which of several endings is likeliest; exact_match, whether the text generated after
    the context is the answer; last_word, how likely the last word of a text is, as in LAMBADA.
    """
    context: str = "context"
    """The file's column of the text that an ending or an answer goes on; of last_word, of the whole text."""
    endings: str | tuple[str, ...] = "endings"
    """The file's column of endings (a list), or several columns with one ending each."""
    label: str = "label"
    """The file's column that says which ending is right, counted from 0."""
    answer: str = "answer"
    """Of exact_match: the file's column of answers."""
    join: str = " "
    """What stands between a context and its ending; of exact_match, between the contexts and answers of examples."""
    until: tuple[str, ...] = ("\n",)
    """Of exact_match: the texts that end what is generated; end of text does, too."""
    tokens: int = Field(default=32, ge=1)
    """Of exact_match: new tokens, at most."""
    ignore: tuple[Literal["case", "punctuation", "numbers"], ...] = ()
    """Of exact_match: what need not match; blanks at both ends never need."""
    examples: Path | None = None
    """A file of the same columns that `shots` come from; null: the first rows of `file`, which are not asked then."""
    include: Path | None = None
    """A folder with task configurations (.yaml) of lm-evaluation-harness's kind, found before its own."""
    allow_code: bool = False
    """Run the Python that the configurations in `include` name (`!function`); else such a folder is refused."""
    shots: int | None = Field(default=None, ge=0)
    """Questions with their answers before each question; null: none, or as many as the named task has by itself."""
    limit: int | None = Field(default=None, ge=1)
    """Questions asked, spread evenly over the file (of a group: over each of its tasks); null: all."""

    @model_validator(mode="after")
    def _one_kind(self) -> "TaskConfig":
        if self.file is None and self.examples is not None:
            raise ValueError("expected `examples` only beside `file`; a named task brings its own")
        if self.file is not None and self.include is not None:
            raise ValueError("expected `include` only without `file`: it is where named tasks are looked for")
        if self.allow_code and self.include is None:
            raise ValueError("expected `allow_code` only beside `include`: nothing else brings code")
        if self.file is None and self.kind != "choice":
            raise ValueError("expected `kind` only beside `file`; a named task is of a kind by itself")
        for knob, kinds in ONLY_FOR.items():
            if knob in self.model_fields_set and (self.file is None or self.kind not in kinds):
                asked = "a named task" if self.file is None else f"`kind: {self.kind}`"
                raise ValueError(f"expected `{knob}` only beside `file` and {_kinds(kinds)}, got it with {asked}")
        for file in (self.file, self.examples):
            if file is not None and not file.name.endswith(SUFFIXES):
                raise ValueError(f"expected a file that ends in {one_of(SUFFIXES)}, got {file.name!r}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        if self.kind != "choice":
            return (self.context, self.answer) if self.kind == "exact_match" else (self.context,)
        return (self.context, *([self.endings] if isinstance(self.endings, str) else self.endings), self.label)

    def digest(self) -> str:
        """sha256 (hex) of this config and the content of every file it names."""
        paths = [path for path in (self.file, self.examples, self.include) if path is not None]
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        read = [file for file in files if file.is_file() and "__pycache__" not in file.parts]  # written by Python
        knobs = self.model_dump(mode="json", exclude={"file", "examples", "include"}, exclude_defaults=True)
        return digest_of([knobs, [digest_file(file) for file in read]])


def _kinds(kinds: Sequence[TaskKind]) -> str:
    return one_of(f"`kind: {kind}`" for kind in kinds)


class FileConfig(Knobs):
    """What is asked of the rows of a file."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that its figures depend on, besides those that run the model."""

    name: str = Field(min_length=1)
    """What its figures are called before the slash, such as sentiment/accuracy."""
    file: Path
    """A .jsonl, .jsonl.gz or .csv file."""
    text: str = "text"
    """The file's column that stands for {text} in the prompt."""
    prompt: str = TEXT
    """What the model reads; {text} is the row's text."""
    limit: int | None = Field(default=None, ge=1)
    """Rows asked, spread evenly over the file; null: all."""

    @field_validator("file")
    @classmethod
    def _kind(cls, file: Path) -> Path:
        if not file.name.endswith(SUFFIXES):
            raise ValueError(f"expected a file that ends in {one_of(SUFFIXES)}, got {file.name!r}")
        return file

    @field_validator("prompt")
    @classmethod
    def _holds_text(cls, prompt: str) -> str:
        if TEXT not in prompt:
            raise ValueError(f"expected a prompt with {TEXT} in it, got {prompt!r}")
        return prompt

    def digest(self) -> str:
        """sha256 (hex) of this config and of the file's content."""
        knobs = self.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
        return digest_of([knobs, self.file.suffix, digest_file(self.file)])


class LabeledConfig(FileConfig):
    """Texts with labels, told apart by the likelihood of what stands for each label."""

    label: str = "label"
    """The file's column of labels."""
    answers: dict[str, str] = Field(min_length=2)
    """Label -> the words that stand for it after the prompt, such as {positive: " positive", negative: " negative"}."""


class GenerationConfig(FileConfig):
    """Prompts, whose generated texts are held against references."""

    libraries: ClassVar[tuple[str, ...]] = tuple(LIBRARIES.values())
    reference: str = "reference"
    """The file's column of references."""
    tokens: int = Field(default=64, ge=1)
    """New tokens of each text, at most."""


Named = TaskConfig | LabeledConfig | GenerationConfig
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def name_problems(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """What is wrong with each of the names of evaluations, or empty: one for each name.

    Args:
        taken: names that mean something else, such as those of noises.
    """
    return [
        f"expected a name of up to 64 letters, digits, '.', '_', '-' ({SEPARATOR!r} begins a metric), got {name!r}"
        if not NAME.fullmatch(name)
        else f"expected another name than {one_of(map(repr, taken))}, which are noises, got {name!r}"
        if name in taken
        else f"expected each name once, got {name!r} again"
        if name.lower() in {earlier.lower() for earlier in names[:index]}  # file systems may not tell them apart
        else ""
        for index, name in enumerate(names)
    ]
