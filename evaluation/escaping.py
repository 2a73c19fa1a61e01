"""What others named, written so that it stays text: a function for each place that gives characters a meaning.

    visible       terminals, logs, XML and HTML: control characters become `\\x1b`, `\\u202e` in plain letters
    Markdown      `markdown`, which every value of a Markdown template goes through
    HTML, XML     jinja2's and ElementTree's own escaping of `<` and `&`, and then `visible`

Names of models, texts, tasks and files come from outside, and so do warnings that quote them. A terminal obeys an
escape character, a viewer runs `<img onerror=...>`, a line feed in a log begins a line that nobody wrote, XML 1.0 has
no place for most of ASCII's control characters at all, and a bidirectional override lets a line read as another one.

Not covered: what a site makes of plain words (GitHub's @name and #1), letters that look like others.
"""

import re
from typing import Any

NO_LETTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters but for tab and line feed (C0, DEL, C1), other ends of lines, overrides of the direction of text,
halves of surrogate pairs, and what is no character."""
MARKS = re.compile(r"[\\`*\[\]|]|~(?=~)|(?<=~)~|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown takes for markup anywhere in a line; an underscore inside a word is none."""
BEGINNING = re.compile(r"^( ?)(?:(\d+)(?=[.)](?: |$))|(?=#|>|[-+=]+(?: |$)))")
"""What it takes for markup where a line begins: a heading, a quotation, a list, the line under a heading."""
BLANKS = re.compile("[ \t\n]+")
ENTITY = re.compile(r"&(?=#?\w+;)")
ADDRESS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
"""What makes a link of plain text."""


def visible(text: str) -> str:
    """Text without a control character but tab and line feed: each is written as Python would write it."""
    return NO_LETTERS.sub(lambda found: repr(found[0])[1:-1], text)


def markdown(value: Any) -> str:
    """A value as one line of Markdown, and in a table's cell, that shows its text and nothing else."""
    text = MARKS.sub(r"\\\g<0>", BLANKS.sub(" ", visible(str(value))))
    text = BEGINNING.sub(r"\1\2\\", text)
    return ADDRESS.sub(r"\\\g<0>", ENTITY.sub("&amp;", text)).replace("<", "&lt;")
