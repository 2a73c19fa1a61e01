"""JSON files that are none, or would hang or fill memory: each with the message a user sees."""

import os
from pathlib import Path

import pytest

from compress.checkpoints.json_file import DEPTH, JsonError, parse_json, read_json, read_object


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_an_object_is_read(file: Path) -> None:
    file.write_text('{"a": [1, null, "\\ud83d\\ude00"]}', encoding="utf-8")
    assert read_object(file) == {"a": [1, None, "\U0001f600"]}


def test_a_pipe_does_not_hang(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(JsonError, match=r"config\.json: expected a plain file.*a folder, a pipe or a device"):
        read_json(file)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_does_not_fill_memory(file: Path) -> None:
    file.symlink_to("/dev/zero")
    with pytest.raises(JsonError, match="a folder, a pipe or a device"):
        read_json(file)


def test_a_folder_and_an_absent_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(JsonError, match="a folder, a pipe"):
        read_json(tmp_path)
    with pytest.raises(JsonError, match="No such file"):
        read_json(tmp_path / "absent.json")


def test_no_more_is_read_than_allowed(file: Path) -> None:
    file.write_text("[" + "1," * 1000 + "1]")
    assert len(read_json(file, limit=4096)) == 1001
    with pytest.raises(JsonError, match="expected at most 1,024 bytes, got more"):
        read_json(file, limit=1024)


@pytest.mark.parametrize("levels", [DEPTH + 2, 20_000])
def test_nesting_ends(file: Path, levels: int) -> None:
    file.write_text("[" * levels + "]" * levels)
    with pytest.raises(JsonError, match=f"at most {DEPTH} levels, got more"):
        read_json(file)


def test_objects_nest_as_lists_do() -> None:
    assert parse_json(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH, "x")
    with pytest.raises(JsonError, match="levels"):
        parse_json(b'{"a":' * (DEPTH + 2) + b"1" + b"}" * (DEPTH + 2), "x")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "expected JSON"),
        (b"", "expected JSON"),
        (b"1" * 5000, "expected JSON"),
        (b'{"a": "\xff"}', "expected JSON in UTF-8, got another byte at 7"),
        (b"\xef\xbb\xbf{}", "got a byte-order mark before it; save it as UTF-8 without one"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"pointer of git-lfs.*git lfs pull"),
        (b'{"a": "\\ud800"}', r"got half of a surrogate pair \(\\ud800\)"),
        (b'{"\\uDC00": 1}', r"got half of a surrogate pair \(\\udc00\)"),
    ],
)
def test_what_is_no_json_is_named(file: Path, raw: bytes, message: str) -> None:
    file.write_bytes(raw)
    with pytest.raises(JsonError, match=rf"config\.json: .*{message}"):
        read_json(file)


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"[]", "a list"), (b"null", "null"), (b"3", "a number"), (b'"x"', "a text")]
)
def test_an_object_is_no_other_value(file: Path, raw: bytes, kind: str) -> None:
    file.write_bytes(raw)
    with pytest.raises(JsonError, match=f"expected a JSON object, got {kind}"):
        read_object(file)
