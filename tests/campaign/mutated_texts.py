"""Texts as people have them, and prompts: documents are what the format says, prompts go on as in transformers.

The oracle reads the bytes by the rules of docs/recipes.md alone, and tokenizes by transformers alone.
"""

import gzip
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from attempt import PASSED, REFUSED, Finding, command, forked
from campaign import Case
from mutate import FILE_OPS, apply
from tiny import bundle, quantized

SEPARATOR = "<|endoftext|>"
PIECES = (
    *("It was a dark night.", "Ein Würfel fällt.", "雨が降る", "😀🏳️‍🌈", "a\u0301", "tab\there", "  two  blanks  ", ""),
    *("\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\r", "\r\n", "\n", "\n\n\n", "\u200b", "\ufeff", "\ufffd"),
    *(
        SEPARATOR,
        f"\n{SEPARATOR}\n",
        f"\r\n{SEPARATOR}\r\n",
        f"\n {SEPARATOR} \n",
        f"x{SEPARATOR}y",
        "<s>",
        "</s>",
        "<unk>",
    ),
    *("\x1b[31m", "\x00", "\x07", "\u202e", "a" * 3000, "\\n", '"quoted"', "{text}", "{{ 1 }}", "--tokens", "$HOME"),
)
RAW = ("ff", "fffe", "efbbbf", "eda080", "c3", "00", "80", "f4908080", "1f8b0800", "504b0304")
NAMES = ("text.txt", "text.txt", "text.jsonl", "text.jsonl", "text.jsonl.gz", "text.parquet", "text.csv", "text.TXT")
ADDED = 6
SPECIAL = ("add_bos_token", "add_eos_token", "add_prefix_space")


class MutatedTexts:
    name, count, unit, alone = "texts", 1000, "texts", False

    def prepare(self, place: Path) -> None:
        self.given, self.model = bundle(place), quantized(place)

    def draw(self, random: Random) -> Case:
        ops = [{"piece": random.choice(PIECES)} for _ in range(random.choice((1, 2, 5, 12)))]
        if random.random() < 0.35:
            return {"way": "prompt", "ops": ops}
        if random.random() < 0.25:
            ops.insert(random.randrange(len(ops) + 1), {"raw": random.choice(RAW)})
        file = random.choice(NAMES)
        rows = random.choice(("text", "text", "other", "chat", "list", "null", "number", "bare"))
        whole = random.choice(FILE_OPS) if random.random() < 0.08 else ""
        return {"way": "file", "ops": ops, "file": file, "rows": rows, "whole": whole}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        if case["way"] == "prompt":
            return self._prompt("".join(op["piece"] for op in case["ops"]), place)
        file = place / case["file"]
        file.write_bytes(_content(case))
        if case["whole"]:
            apply({"file": file.name, "do": case["whole"]}, place)
        shutil.copytree(self.model, place / "model")
        read = forked(lambda: _documents(file), place)
        found = read.findings((PASSED, REFUSED))
        if read.code == PASSED and not found:
            right, ours = documents(file, case), json.loads(read.out)
            if ours != right:
                text = f"documents {str(ours)[:400]!r}, but the file holds {str(right)[:400]!r}"
                found.append(Finding(what="wrong", text=text))
        return found

    def _prompt(self, prompt: str, place: Path) -> list[Finding]:
        if "\x00" in prompt:  # no command line can hold it
            prompt = prompt.replace("\x00", "")
        ended = command("generate", self.given, "--tokens", ADDED, "--", prompt, place=place)
        found = ended.findings((PASSED, REFUSED))
        if ended.code != PASSED or found:
            return found
        (place / "said.json").write_text(json.dumps([prompt, ended.out]), encoding="utf-8")
        checked = forked(lambda: _check(self.given, place / "said.json"), place)
        return [] if checked.code == PASSED else [Finding(what="wrong", text=checked.said)]


def _content(case: Case) -> bytes:
    """The file that a case describes."""
    text = b"".join(bytes.fromhex(op["raw"]) if "raw" in op else op["piece"].encode() for op in case["ops"])
    if ".jsonl" in case["file"]:
        rows = [_row(case["rows"], op["piece"]) for op in case["ops"] if "piece" in op]
        text = "\n".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) for row in rows).encode()
        text = b"".join(bytes.fromhex(op["raw"]) for op in case["ops"] if "raw" in op) + text
        return gzip.compress(text) if case["file"].endswith(".gz") else text
    if case["file"].endswith(".parquet") and not any("raw" in op for op in case["ops"]):
        return _parquet(case)
    return text


def _parquet(case: Case) -> bytes:
    import pyarrow
    from pyarrow import parquet

    column = "content" if case["rows"] == "other" else "text"
    values: list[Any] = [op["piece"] for op in case["ops"]]
    if case["rows"] in ("null", "number", "list"):
        values = [{"null": None, "number": 5, "list": ["x"]}[case["rows"]] for _ in values]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({column: values}), sink)
    return bytes(sink.getvalue())


def _row(rows: str, piece: str) -> Any:
    shapes = {"other": {"content": piece}, "chat": {"messages": [{"role": "user", "content": piece}]}, "list": [piece]}
    shapes |= {"null": {"text": None}, "number": {"text": 5}, "bare": piece}
    return shapes.get(rows, {"text": piece, "id": 1})


def _documents(file: Path) -> None:
    """The documents that the product reads, as JSON; its own refusals as any command would tell them."""
    import sys

    from compress.text import TextSource, read_documents
    from recipes.runs.failures import exit_code, message

    try:
        print(json.dumps(read_documents(TextSource(file=file))))
    except Exception as error:
        if isinstance(error, ValueError) and "expected a file that ends in" in str(error):
            sys.exit(_told(str(error), REFUSED))  # pydantic's own, which a recipe's loader rephrases
        sys.exit(_told(message(error), exit_code(error)))


def _told(text: str, code: int) -> int:
    import sys

    print(f"error: {text}", file=sys.stderr)
    return code


def documents(file: Path, case: Case) -> list[str]:
    """What the file holds, by the rules alone."""
    if file.suffix == ".parquet":
        return [op["piece"].strip() for op in case["ops"] if op["piece"].strip()]
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text = content.decode("utf-8-sig")
    if ".jsonl" in file.name:
        rows = [json.loads(line)["text"] for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
        return [row.strip() for row in rows if row and row.strip()]
    found: list[list[str]] = [[]]
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.strip() == SEPARATOR:
            found.append([])
        else:
            found[-1].append(line)
    return [document for document in ("\n".join(lines).strip() for lines in found) if document]


def _check(folder: Path, file: Path) -> None:
    """The prompt, then what the ids of transformers' own tokenizer lead to, decoded as transformers decodes."""
    from transformers import AutoTokenizer

    from export.runtime.model import OnnxCausalLM

    prompt, said = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(prompt)["input_ids"]
    added = list(OnnxCausalLM.open(folder).stream(ids, max_new_tokens=ADDED))
    before, after = (tokenizer.decode(one, skip_special_tokens=True) for one in (ids, ids + added))
    right = prompt + after[len(before) :] + "\n"
    left, wanted = (text.encode("utf-8", "replace").decode().rstrip("\ufffd\n") for text in (said, right))
    assert left == wanted, (
        f"after {prompt!r} generate says {said[len(prompt) :]!r}, transformers {after[len(before) :]!r}"
    )
