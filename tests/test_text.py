"""Text of every format, and what is no text."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from compress import TextError, TextSource
from compress.text import pack, read_documents

DOCUMENTS = ["First.\nStill first.", "Second, naïve."]


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"story": text}) for text in DOCUMENTS))
    parquet.write_table(pyarrow.table({"story": DOCUMENTS}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read_documents(TextSource(file=tmp_path / name, field="story")) == DOCUMENTS, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b" \n\n<|endoftext|>\n", "got an empty file"),
        (b"\xff\x00\x01", "got binary data at byte 0"),
        ("text".encode("utf-16"), r"got UTF-16 \(by its byte-order mark\); save it as UTF-8"),
        (b"text\x00text", r"got binary data \(a zero byte\)"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_documents(TextSource(file=tmp_path / "a.txt"))


ODD = "Page.\x0cPage.\u2028JavaScript.\x85Next.\x1cRecord.\x0bDown.\rOld Mac.\n  Indented:\n\n\tif x:\n\t\treturn"


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"{ODD}\n<|endoftext|>\n{ODD}".encode())
    (tmp_path / "b.txt").write_bytes(f"{ODD}\n<|endoftext|>\n{ODD}".replace("\n", "\r\n").encode())
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "one"}\r\n{"text": "a\x7f\xe2\x80\xa8b"}\r\n')
    assert read_documents(TextSource(file=tmp_path / "a.txt")) == [ODD, ODD]
    assert read_documents(TextSource(file=tmp_path / "b.txt")) == [ODD, ODD]
    assert read_documents(TextSource(file=tmp_path / "c.jsonl")) == ["one", "a\x7f\u2028b"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.TXT", "a.JSONL", "a.txt.gz", "a.jsonl.gz"])
def test_a_byte_order_mark_and_packing_are_no_text(name: str, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"text": text}) for text in DOCUMENTS)
    text = rows if "jsonl" in name.lower() else "<|endoftext|>\n" + "\n<|endoftext|>\n".join(DOCUMENTS)
    content = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_documents(TextSource(file=tmp_path / name)) == DOCUMENTS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"content": "a", "id": 1}', r"got 'content', 'id'; name the column that holds the text: field: content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"got a chat \(messages\); write each out as one text"),
        ("{}", "got an object without any column; leave such rows out"),
        ('[{"text": "a"}]', "expected one JSON object a line"),
        ('"a"', "expected one JSON object a line"),
        ("[" * 20_000, "expected one JSON object a line, got '\\[\\["),
        ('{"text": "a\\ud800b"}', r"document 2: expected text, got \\ud800 at character 1"),
    ],
)
def test_rows_that_hold_no_text_are_refused_with_the_way_out(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{row}\n', encoding="utf-8")
    with pytest.raises(TextError, match=message) as caught:
        read_documents(TextSource(file=tmp_path / "a.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    for content in (b"text", gzip.compress(b"text" * 99)[:20]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(TextError, match=r"a\.txt\.gz: cannot be read \("):
            read_documents(TextSource(file=tmp_path / "a.txt.gz"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"absent\.txt: .*cannot be read"):
        read_documents(TextSource(file=tmp_path / "absent.txt"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}')
    with pytest.raises(TextError, match=r'a\.jsonl:2: expected a JSON object with "text"'):
        read_documents(TextSource(file=tmp_path / "a.jsonl"))
    parquet.write_table(pyarrow.table({"story": DOCUMENTS}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match='with a column "text"'):
        read_documents(TextSource(file=tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either `file` or `dataset`"),
        ({"file": "a.txt", "dataset": "b"}, "either `file` or `dataset`"),
        ({"dataset": "wikitext"}, "needs `revision`"),
        ({"file": "a.pdf"}, r"ends in \.txt, \.jsonl, \.parquet, \.txt\.gz, \.jsonl\.gz, got 'a\.pdf'"),
    ],
)
def test_an_unclear_source_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSource(**fields)


def test_a_null_is_no_text_and_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "one\u2028line"}\n')
    assert read_documents(TextSource(file=tmp_path / "a.jsonl")) == ["one\u2028line"]
    (tmp_path / "a.jsonl").write_text('{"text": 7}\n')
    with pytest.raises(TextError, match=r"a\.jsonl:1: expected text in every row, got 7"):
        read_documents(TextSource(file=tmp_path / "a.jsonl"))


def test_digest_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    a, b = (TextSource(file=tmp_path / name) for name in ("a.txt", "b.txt"))
    assert a.digest() == b.digest()
    (tmp_path / "b.txt").write_text("two")
    assert a.digest() != b.digest()


def test_packing_ends_every_document_and_drops_the_partial_row() -> None:
    rows_NT = pack([np.array([1, 2, 3]), np.array([4, 5])], 3, end_of_text=0)
    assert rows_NT.tolist() == [[1, 2, 3], [0, 4, 5]]
    with pytest.raises(TextError, match="has 4 tokens, fewer than one sequence of 8"):
        pack([np.array([1, 2, 3])], 8, end_of_text=0)


def test_every_row_begins_as_the_tokenizer_begins_a_text() -> None:
    rows_NT = pack([np.array([1, 2, 3]), np.array([4, 5])], 4, 0, before=[8, 9])
    assert rows_NT.tolist() == [[8, 9, 1, 2], [8, 9, 3, 0], [8, 9, 4, 5]]
