"""YAML as plain values: what stands for too much, or for no plain value, is refused in one line."""

import pytest

from recipes.config.yaml_text import DEEPEST, MOST, YamlError, parse_yaml

TENFOLD = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
AMOUNT = f"at most {MOST:,} keys and values"
LEVELS = f"at most {DEEPEST} levels"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TENFOLD, AMOUNT),
        (MERGED, AMOUNT),
        ("a: &a [*a]", AMOUNT),
        ("&a {<<: *a}", AMOUNT),
        ("[" * 20_000, LEVELS),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), LEVELS),
        ("- " * 20_000, LEVELS),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ('"a\\0b"', "a zero byte"),
        ("!!binary aGVsbG8=", "a tag such as"),
        ("!!bool x", "no valid YAML"),
        ("!!int ''", "no valid YAML"),
        ("? [a]\n: b", "no valid YAML"),
        ("1" * 5000, "no valid YAML"),
        ("!!python/object/apply:os.system [ls]", "no valid YAML"),
    ],
)
def test_what_is_no_plain_value_is_one_line(text: str, said: str) -> None:
    with pytest.raises(YamlError, match=said) as caught:
        parse_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_anchors_and_merge_keys_within_the_budget_are_read() -> None:
    _, value = parse_yaml("a: &a {k: 1, l: 2}\nb: {<<: *a, l: 3}\nc: [*a, *a]\n")
    assert value == {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}, "c": [{"k": 1, "l": 2}] * 2}


def test_as_many_levels_as_are_allowed() -> None:
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST)[1] is not None
