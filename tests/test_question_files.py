"""Questions from a file: every format gives the same rows, a limit is spread, and a bad row is named with its line."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compress.knobs import UnknownKnobError
from recipes.config.evaluations import TaskConfig
from recipes.measure.question_files import OpenQuestion, Question, TaskError, read_questions, spread

ROWS = [{"context": f"Tea, {n}:", "endings": [f"cup {n}", f'a "{n}", hot', "pot"], "label": n % 3} for n in range(9)]


def json_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def comma_separated(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def one_cell(file: Path) -> TaskConfig:
    return TaskConfig(
        name="tea", file=comma_separated(file, [{**row, "endings": json.dumps(row["endings"])} for row in ROWS])
    )


def one_cell_each(file: Path) -> TaskConfig:
    names = ("first", "second", "third")
    rows = [
        {"context": row["context"], "label": row["label"], **dict(zip(names, row["endings"], strict=True))}
        for row in ROWS
    ]
    return TaskConfig(name="tea", file=comma_separated(file, rows), endings=names)


def compressed(file: Path) -> TaskConfig:
    file = file.with_suffix(".jsonl.gz")
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return TaskConfig(name="tea", file=file)


@pytest.mark.parametrize("written", [one_cell, one_cell_each, compressed])
def test_every_format_gives_the_same_questions(written: Any, tmp_path: Path) -> None:
    questions, examples = read_questions(written(tmp_path / "tea.csv"))
    assert questions == [Question(**row) for row in ROWS]
    assert examples == []


@pytest.mark.parametrize(("rows", "limit"), [(10_042, 400), (7, 5), (3, 2), (5, 5), (5, 9), (1, 1)])
def test_a_limit_draws_one_row_of_each_run(rows: int, limit: int) -> None:
    for seed in range(20):
        drawn = spread(rows, limit, seed)
        assert len(drawn) == min(rows, limit)
        assert drawn == sorted(set(drawn))
        assert all(run * rows // limit <= row < (run + 1) * rows // limit for run, row in enumerate(drawn[:limit])) or (
            limit > rows and drawn == list(range(rows))
        )
        assert drawn == spread(rows, limit, seed)
    if limit * 2 < rows:
        assert spread(rows, limit, 0) != spread(rows, limit, 1)


def test_examples_of_the_same_file_are_not_asked(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "tea.jsonl", ROWS)
    questions, examples = read_questions(TaskConfig(name="tea", file=file, shots=2))
    assert examples == [Question(**row) for row in ROWS[:2]]
    assert questions == [Question(**row) for row in ROWS[2:]]


def test_examples_of_another_file_leave_every_row_to_ask(tmp_path: Path) -> None:
    file, other = json_lines(tmp_path / "tea.jsonl", ROWS[2:]), json_lines(tmp_path / "shots.jsonl", ROWS[:2])
    questions, examples = read_questions(TaskConfig(name="tea", file=file, examples=other, shots=1))
    assert len(questions) == 7
    assert examples == [Question(**ROWS[0])]


def test_labels_may_be_digits(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "tea.jsonl", [{**row, "label": str(row["label"])} for row in ROWS])
    assert read_questions(TaskConfig(name="tea", file=file))[0] == [Question(**row) for row in ROWS]


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"label": 3}, {}, "tea.jsonl:2: label: expected the number of an ending from 0 to 2, got 3"),
    ({"label": -1}, {}, "tea.jsonl:2: label: expected the number of an ending from 0 to 2, got -1"),
    ({"label": True}, {}, "tea.jsonl:2: label: expected the number of an ending from 0 to 2, got true"),
    ({"label": "pot"}, {}, "tea.jsonl:2: label: expected the number of an ending from 0 to 2, got 'pot'"),
    ({"endings": ["cup"]}, {}, "tea.jsonl:2: endings: expected two or more texts, got a list of 1"),
    ({"endings": ["cup", ""]}, {}, "tea.jsonl:2: endings: expected two or more texts, got a list of 2"),
    ({"endings": "cup"}, {}, "tea.jsonl:2: endings: expected two or more texts, got 'cup'"),
    ({"context": None}, {}, "tea.jsonl:2: context: expected a text, got nothing"),
    ({}, {"endings": "ending"}, "name the column with `endings`; did you mean 'endings'?"),
    ({}, {"context": "question"}, "expected the column 'question', got 'context', 'endings' or 'label'; name the"),
    ({}, {"shots": 9}, "expected more than 9 rows, since the first 9 become examples, got 9; lower `shots`"),
]


@pytest.mark.parametrize(("change", "knobs", "message"), BAD)
def test_a_bad_row_is_named(change: dict[str, Any], knobs: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = json_lines(tmp_path / "tea.jsonl", [ROWS[0], {**ROWS[1], **change}, *ROWS[2:]])
    with pytest.raises(TaskError) as found:
        read_questions(TaskConfig(name="tea", file=file, **knobs))
    assert message in str(found.value)
    assert str(found.value).startswith("tea: ")


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "tea.jsonl", [{**row, "label": 7} for row in ROWS])
    with pytest.raises(TaskError) as found:
        read_questions(TaskConfig(name="tea", file=file))
    lines = str(found.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == f"tea: {file}: 4 more such rows"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tea.jsonl", b"", "expected questions, got an empty file"),
        ("tea.jsonl", b"{]", "tea.jsonl:1: expected one JSON object per line"),
        ("tea.jsonl", b"{}\n", "tea.jsonl:1: expected the column 'context', got an empty row; name the column with"),
        ("tea.jsonl", b"\n7\n", "tea.jsonl:2: expected one JSON object per line, got 7"),
        ("tea.jsonl", b"null\n", "tea.jsonl:1: expected one JSON object per line, got nothing"),
        ("tea.jsonl", b'{"context": "\\ud800"}\n', "tea.jsonl:1: expected text, got half of a surrogate pair"),
        ("tea.jsonl", b"[1]\n", "tea.jsonl:1: expected one JSON object per line, got a list of 1"),
        ("tea.jsonl", b"\xff\xfe", "expected text in UTF-8"),
        ("tea.jsonl.gz", b"plain", "expected text in UTF-8"),
        ("tea.csv", b"context,endings,label\na,b\n", "tea.csv:2: expected 3 cells, as the head line has, got 2"),
        ("tea.csv", b"context,endings,label\na,b,c,d\n", "tea.csv:2: expected 3 cells, as the head line has, got 4"),
        (
            "tea.csv",
            b'context,endings,label\n"a,b\n',
            "tea.csv: expected comma-separated values, got unexpected end of data after line 1",
        ),
    ],
)
def test_a_file_that_is_none_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError) as found:
        read_questions(TaskConfig(name="tea", file=tmp_path / name))
    assert message in str(found.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"tea: .*none\.jsonl: expected a plain file"):
        read_questions(TaskConfig(name="tea", file=tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"examples": "shots.jsonl"}, "expected `examples` only beside `file`"),
        ({"file": "tea.jsonl", "include": "tasks"}, "expected `include` only without `file`"),
        ({"file": "tea.txt"}, "expected a file that ends in .jsonl, .jsonl.gz or .csv, got 'tea.txt'"),
        ({"kind": "last_word"}, "expected `kind` only beside `file`"),
        ({"allow_code": True}, "expected `allow_code` only beside `include`"),
        ({"include": "tasks", "join": ""}, "expected `join` only beside `file` and `kind: choice` or .*named task"),
        (
            {"file": "tea.jsonl", "kind": "last_word", "join": ""},
            "expected `join` only .* got it with `kind: last_word`",
        ),
        ({"file": "tea.jsonl", "tokens": 3}, "expected `tokens` only beside `file` and `kind: exact_match`"),
        ({"file": "tea.jsonl", "shot": 1}, "got 'shot'; did you mean 'shots'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, UnknownKnobError), match=message):
        TaskConfig(name="tea", **knobs)


def test_the_digest_covers_knobs_and_contents_and_no_paths(tmp_path: Path) -> None:
    here, there = json_lines(tmp_path / "tea.jsonl", ROWS), json_lines(tmp_path / "other.jsonl", ROWS)
    digest = TaskConfig(name="tea", file=here).digest()
    assert TaskConfig(name="tea", file=there).digest() == digest
    assert TaskConfig(name="tea", file=here, limit=3).digest() != digest
    json_lines(there, ROWS[1:])
    assert TaskConfig(name="tea", file=there).digest() != digest


@pytest.mark.parametrize(
    ("row", "kind", "wanted"),
    [
        (
            {"context": "Two and two?", "answer": " Four "},
            "exact_match",
            OpenQuestion(context="Two and two?", answer="Four"),
        ),
        ({"context": "2 + 2 =", "answer": 4}, "exact_match", OpenQuestion(context="2 + 2 =", answer="4")),
        ({"context": "He\ncame  home"}, "last_word", OpenQuestion(context="He\ncame ", answer=" home")),
        (
            {"context": "2 + 2 =", "answer": None},
            "exact_match",
            "tea.jsonl:1: answer: expected a text or a number, got",
        ),
        ({"context": "2 + 2 =", "answer": [4]}, "exact_match", "tea.jsonl:1: answer: expected a text or a number, got"),
        (
            {"context": "2 + 2 ="},
            "exact_match",
            "tea.jsonl:1: expected the column 'answer', got 'context'; name the column",
        ),
        ({"context": 3, "answer": "x"}, "exact_match", "tea.jsonl:1: context: expected a text, got 3"),
        ({"context": "home"}, "last_word", "tea.jsonl:1: context: expected a text that ends in a blank and a word"),
        ({"context": "He came "}, "last_word", "tea.jsonl:1: context: expected a text that ends in a blank and a word"),
        ({"context": None}, "last_word", "tea.jsonl:1: context: expected a text, got nothing"),
    ],
)
def test_answers_and_last_words_are_read_or_their_row_is_named(
    row: dict[str, Any], kind: Any, wanted: OpenQuestion | str, tmp_path: Path
) -> None:
    config = TaskConfig(name="tea", kind=kind, file=json_lines(tmp_path / "tea.jsonl", [row]))
    if isinstance(wanted, OpenQuestion):
        assert read_questions(config) == ([wanted], [])
        return
    with pytest.raises(TaskError) as found:
        read_questions(config)
    assert wanted in str(found.value)
