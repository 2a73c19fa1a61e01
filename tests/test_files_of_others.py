"""Files that somebody else may have written: none of them hangs, fills memory or ends in an error of ours.

Each reader gets a pipe, a device, brackets without end and values of other kinds in the place of what it reads.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoints.folder import load_tokenizer, outline
from compress.errors import DemitasseError
from compress.text import TextSource, read_documents
from evaluation.report import REPORT, Report
from export.genai import CONFIG
from export.manifest import MANIFEST, read_manifest
from export.runtime.model import BundleConfig
from recipes.config.evaluations import TaskConfig
from recipes.engine.benchmark import _begin
from recipes.engine.model_source import digest_folder
from recipes.measure.question_files import read_questions
from recipes.runs.failures import exit_code, message
from recipes.runs.records import read_artifact, read_note
from recipes.runs.report_file import read_report

DEEP = 20_000
LEFT: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "brackets": lambda file: file.write_text("[" * DEEP + "]" * DEEP),
    "braces": lambda file: file.write_text('{"a":' * DEEP + "1" + "}" * DEEP),
    "a list": lambda file: file.write_text("[1, 2]"),
    "no number": lambda file: file.write_text("NaN"),
    "other kinds": lambda file: file.write_text(
        '{"model": {"context_length": [1], "vocab_size": "9"}, "seal": 4, "schema_version": [], "files": 3, "key": {}, '
        '"model_max_length": [1], "eos_token_id": {}, "targets": 1}'
    ),
}


def _questions(file: Path) -> object:
    return read_questions(TaskConfig(name="t", file=file))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config.json": ("gpt2", lambda file: outline(file.parent)),
    "tokenizer_config.json": ("gpt2", lambda file: load_tokenizer(file.parent)),
    "tokenizer.json": ("gpt2", lambda file: load_tokenizer(file.parent)),
    "generation_config.json": ("gpt2", lambda file: outline(file.parent)),
    "model.safetensors.index.json": ("no weights", lambda file: outline(file.parent)),
    CONFIG: ("", lambda file: BundleConfig.read(file.parent)),
    MANIFEST: ("", lambda file: read_manifest(file.parent)),
    REPORT: ("", lambda file: read_report(file)),
    "artifact.json": ("", lambda file: read_artifact(file.parent)),
    "note.json": ("", read_note),
    "benchmark.json": ("", lambda file: _begin(file, None)),  # type: ignore[arg-type]
    "rows.jsonl": ("", lambda file: read_documents(TextSource(file=file))),
    "questions.jsonl": ("", _questions),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_others_is_read_or_refused_in_one_line(name: str, left: str, gpt2: Path, tmp_path: Path) -> None:
    beside, read = READERS[name]
    folder = tmp_path / "given"
    shutil.copytree(gpt2, folder) if beside else folder.mkdir()
    for file in (folder / name, *([folder / "model.safetensors"] if beside == "no weights" else [])):
        file.unlink(missing_ok=True)
    LEFT[left](folder / name)
    with pytest.raises(DemitasseError) as refused:
        read(folder / name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert name in str(refused.value) or "tokenizer" in str(refused.value)


def test_a_pipe_among_files_that_are_hashed_does_not_hang(int8_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))
    os.mkfifo(bundle / "more.bin")
    with pytest.raises(OSError, match="a folder, a pipe or a device") as refused:
        digest_folder(bundle)
    assert exit_code(refused.value) == 2
    assert message(refused.value) == f"{bundle / 'more.bin'}: it is a folder, a pipe or a device"


def test_every_reader_reads_what_is_whole(rich_run: Report, gpt2: Path) -> None:
    assert rich_run.folder is not None
    given: dict[str, Any] = {REPORT: read_report(rich_run.folder), "config.json": outline(gpt2)}
    assert given[REPORT].name == rich_run.name
