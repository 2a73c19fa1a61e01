"""Which widths a slimmer model may have, and which of them to take: what was asked for, or what meets a target.

    asked     an integer is the width itself, a fraction the share to keep, rounded to the nearest possible width
    target    the path is the shapes that a factor f from 1 downwards gives when every axis that may shrink keeps f of
              itself. For parameters, the neurons then take up what the coarser axes leave, and the shape is taken that
              best weighs an even shrinking against weights left unused. For a latency, the path is bisected by
              measuring, because what a shape costs on a runtime is not its number of weights.

Widths are uniform over the layers, since a stock config has one number for all of them. Neurons and channels come in
multiples of 64 and 32, of 8 where the model is narrow, so that kernels and blocks of quantization fit. Key-value heads
go with their query heads or keep fewer query heads each: heads = kv_heads * r with an r no larger than the source's.

Not covered: axes of unequal worth; a target spreads what it removes evenly, whatever the model could bear best.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from compress.models.families import Axes, Family, Shape, Size
from compress.stage import StageError
from compress.structured.config import ShrinkAxis, Width

SHRINK_AXES: tuple[ShrinkAxis, ...] = get_args(ShrinkAxis)
UNITS: dict[str, int] = {"ffn": 64, "hidden": 32}
NARROW = 512
"""Below this width a dimension comes in multiples of NARROW_UNIT."""
NARROW_UNIT = 8
UNUSED = 10.0
"""What a share of a parameter target that stays unused counts against unevenness: 1 % as much as one axis that keeps
10 % more of itself than another.
"""
STEP = 0.005
SMALLEST = 0.05
"""Steps and end of the factor along the path."""
MEASURED = 33
"""Shapes of the path that a latency target chooses from: seven measurements find one of them."""
LISTED = 12
"""Possible widths that a message lists in full."""


@dataclass(frozen=True)
class Parameters:
    """Counts a family's weights at any shape, from one model's parameters: (axes, dimensions) of each."""

    block: tuple[tuple[Axes, tuple[int, ...]], ...]
    rest: tuple[tuple[Axes, tuple[int, ...]], ...]

    def count(self, shape: Shape) -> int:
        """Number of weights, a tied one counted once."""
        return shape.layers * self._sum(self.block, shape) + self._sum(self.rest, shape)

    @staticmethod
    def _sum(entries: Sequence[tuple[Axes, tuple[int, ...]]], shape: Shape) -> int:
        return sum(
            math.prod(
                size if axis == "fixed" else shape.width(axis) for axis, size in zip(axes, dimensions, strict=True)
            )
            for axes, dimensions in entries
        )


def asked_shape(source: Shape, family: Family, asked: Mapping[Size, Width]) -> Shape:
    """The shape that the knobs ask for.

    Raises:
        StageError: a width is impossible; the message names the possible ones.
    """
    check_frozen(family, asked)
    shape = source
    if "layers" in asked:
        shape = replace(shape, layers=_pick("layers", range(1, source.layers + 1), asked["layers"], source.layers))
    if "ffn" in asked:
        shape = replace(shape, ffn=_pick("ffn", _multiples(source.ffn, asked["ffn"], "ffn"), asked["ffn"], source.ffn))
    return _asked_square(shape, family, asked) if family.square else _asked_free(shape, family, asked)


def check_frozen(family: Family, sizes: Iterable[Size]) -> None:
    """Refuse sizes that cannot change in this architecture.

    Raises:
        StageError: all of them, with the reasons.
    """
    reasons = {size: family.frozen.get("heads" if size == "kv_heads" else size) for size in sizes}
    told = [f"{size} cannot change in this architecture: {reason}" for size, reason in reasons.items() if reason]
    if told:
        possible = [size for size in SHRINK_AXES if size not in family.frozen]
        raise StageError(f"slim: {'; '.join(told)}. MaskSelector among {', '.join(possible)}")


def _asked_square(source: Shape, family: Family, asked: Mapping[Size, Width]) -> Shape:
    """Heads and hidden channels of a family in which they only go together."""
    if "kv_heads" in asked and "kv_heads" not in family.keys:
        raise StageError("slim: kv_heads: this architecture has one key-value head per head; ask for `heads`")
    pairs = head_pairs(source)
    shape = _asked_heads(source, sorted(pairs), asked)
    if "hidden" in asked:
        widths = [count * source.head_dim for count in sorted(pairs)]
        hidden = _pick("hidden", widths, asked["hidden"], source.hidden)
        if {"heads", "kv_heads"} & set(asked) and hidden != shape.heads * source.head_dim:
            raise StageError(
                f"slim: hidden: expected {shape.heads * source.head_dim} beside {shape.heads} heads, because this "
                f"architecture has heads of hidden / heads columns, {source.head_dim} each; got {hidden}. Give one of "
                "the two"
            )
        heads = hidden // source.head_dim
        shape = shape if heads == shape.heads else replace(shape, heads=heads, kv_heads=pairs[heads])
    return replace(shape, hidden=shape.heads * source.head_dim)


def _asked_heads(source: Shape, possible: Sequence[int], asked: Mapping[Size, Width]) -> Shape:
    """Heads as asked for, of the possible numbers, each with the most key-value heads it can have."""
    if "kv_heads" in asked:
        kv_heads = _pick("kv_heads", range(1, source.kv_heads + 1), asked["kv_heads"], source.kv_heads)
        groups = [kv_heads * queries for queries in range(1, source.heads // source.kv_heads + 1)]
        heads = _pick("heads", groups, asked["heads"], source.heads) if "heads" in asked else groups[-1]
        return replace(source, heads=heads, kv_heads=kv_heads)
    if "heads" in asked:
        heads = _pick("heads", possible, asked["heads"], source.heads)
        return replace(source, heads=heads, kv_heads=head_pairs(source)[heads])
    return source


def _asked_free(source: Shape, family: Family, asked: Mapping[Size, Width]) -> Shape:
    """Heads and hidden channels of a family whose config has a key for each."""
    possible = sorted(head_pairs(source))
    if family.divides and "hidden" not in asked:
        possible = [count for count in possible if source.hidden % count == 0]
    shape = _asked_heads(source, possible, asked)
    if "hidden" in asked:
        multiples = _multiples(source.hidden, asked["hidden"], "hidden", shape.heads if family.divides else 1)
        shape = replace(shape, hidden=_pick("hidden", multiples, asked["hidden"], source.hidden))
    if family.divides and shape.hidden % shape.heads:
        raise StageError(
            f"slim: hidden: this architecture's config wants a multiple of {shape.heads}, its heads, got {shape.hidden}"
        )
    return shape


def head_pairs(source: Shape) -> dict[int, int]:
    """Possible numbers of heads, each with the most key-value heads it can have."""
    pairs: dict[int, int] = {}
    for kv_heads in range(1, source.kv_heads + 1):
        for queries in range(1, source.heads // source.kv_heads + 1):
            pairs[kv_heads * queries] = max(kv_heads, pairs.get(kv_heads * queries, 0))
    return pairs


def unit_of(axis: str, width: int) -> int:
    """What a width is rounded to a multiple of."""
    return UNITS[axis] if width >= NARROW else NARROW_UNIT


def _multiples(width: int, asked: Width, axis: str, divisor: int = 1) -> list[int]:
    """Possible widths up to `width` itself; who names one outright is held to multiples of 8 alone."""
    unit = math.lcm(NARROW_UNIT if isinstance(asked, int) else unit_of(axis, width), divisor)
    return sorted({*range(unit, width + 1, unit), *([width] if width % divisor == 0 else [])})


def _pick(name: str, possible: Sequence[int], asked: Width, whole: int) -> int:
    """The width itself, or the possible one nearest to a share of `whole`."""
    if not possible:
        raise StageError(f"slim: {name}: no narrower width fits the other widths asked for; change those")
    if isinstance(asked, float):
        return nearest(possible, asked * whole)
    if asked not in possible:
        raise StageError(f"slim: {name}: expected {_listed(possible, asked)}, got {asked}")
    return asked


def nearest(possible: Sequence[int], wanted: float) -> int:
    """The possible width nearest to the wanted one; of two the larger."""
    return min(possible, key=lambda width: (abs(width - wanted), -width))


def _listed(possible: Sequence[int], asked: int) -> str:
    if len(possible) <= LISTED:
        return f"one of {', '.join(map(str, possible))}"
    near = sorted(sorted(possible, key=lambda width: abs(width - asked))[: LISTED // 2])
    return f"one of the {len(possible)} possible widths up to {possible[-1]}, such as {', '.join(map(str, near))}"


def path(source: Shape, family: Family, axes: Sequence[ShrinkAxis], count: Callable[[Shape], int]) -> list[Shape]:
    """Ever smaller shapes, the source first, in which each of `axes` keeps about the same share of itself."""
    check_frozen(family, axes)
    if family.square and ("heads" in axes) != ("hidden" in axes):
        raise StageError("slim: axes: this architecture's heads and hidden width go together; name both or neither")
    found = [source]
    for step in range(1, round((1 - SMALLEST) / STEP) + 1):
        shape = _at(1 - step * STEP, source, family, axes)
        if count(shape) < count(found[-1]) and all(
            new <= old for new, old in zip(shape.sizes().values(), found[-1].sizes().values(), strict=True)
        ):
            found.append(shape)
    return found


def _at(factor: float, source: Shape, family: Family, axes: Sequence[ShrinkAxis]) -> Shape:
    shape = source
    if "layers" in axes:
        shape = replace(shape, layers=max(1, round(factor * source.layers)))
    if "ffn" in axes:
        shape = replace(shape, ffn=nearest(_multiples(source.ffn, factor, "ffn"), factor * source.ffn))
    pairs = head_pairs(source)
    if family.square:
        heads = max(1, round(factor * source.heads)) if "heads" in axes else source.heads
        heads = heads if heads in pairs else nearest(list(pairs), factor * source.heads)
        return replace(shape, heads=heads, kv_heads=pairs[heads], hidden=heads * source.head_dim)
    if "heads" in axes:
        heads = nearest([count for count in pairs if _hiddens(source, family, axes, count)], factor * source.heads)
        shape = replace(shape, heads=heads, kv_heads=pairs[heads])
    return replace(shape, hidden=nearest(_hiddens(source, family, axes, shape.heads), factor * source.hidden))


def _hiddens(source: Shape, family: Family, axes: Sequence[ShrinkAxis], heads: int) -> list[int]:
    """Hidden widths that the path may take beside so many heads."""
    divisor = heads if family.divides else 1
    if "hidden" in axes:
        return _multiples(source.hidden, SMALLEST, "hidden", divisor)
    return [] if source.hidden % divisor else [source.hidden]


def fit_parameters(
    source: Shape, family: Family, axes: Sequence[ShrinkAxis], ratio: float, count: Callable[[Shape], int]
) -> Shape:
    """A shape of at most `ratio` of the source's weights, hardly smaller than that and shrunk evenly.

    Raises:
        StageError: these axes cannot shrink the model that far.
    """
    limit = ratio * count(source)
    shapes = path(source, family, axes, count)
    fitting = [_fill(shape, source.ffn, limit, count) if "ffn" in axes else shape for shape in shapes]
    fitting = [shape for shape in fitting if count(shape) <= limit]
    if not fitting:
        smallest = min(map(count, shapes)) / count(source)
        raise StageError(
            f"slim: target: {', '.join(axes)} can shrink this model to {smallest:.3f} of its parameters, not to "
            f"{ratio}; name more axes, or a larger share"
        )
    return min(fitting, key=lambda shape: spread(shape, source, axes) + UNUSED * (1 - count(shape) / limit))


def _fill(shape: Shape, ffn: int, limit: float, count: Callable[[Shape], int]) -> Shape:
    """The same shape with as many neurons as the limit bears."""
    wider = [replace(shape, ffn=width) for width in _multiples(ffn, 1.0, "ffn")]
    fitting = [candidate for candidate in wider if count(candidate) <= limit]
    return fitting[-1] if fitting else wider[0]


def spread(shape: Shape, source: Shape, axes: Sequence[ShrinkAxis]) -> float:
    """How unevenly the axes have shrunk: 0 where each keeps the same share."""
    shares = [math.log(getattr(shape, axis) / getattr(source, axis)) for axis in axes]
    return max(shares) - min(shares)


def fit_latency(
    shapes: Sequence[Shape], ratio: float, seconds: Callable[[Shape], float], count: Callable[[Shape], int]
) -> tuple[Shape, list[tuple[Shape, float]]]:
    """The largest shape of a path that was measured to take at most `ratio` of the first one's time, and the table.

    Raises:
        StageError: the smallest one takes longer.
    """
    shapes = thin(shapes, count)
    table = [(shapes[0], seconds(shapes[0]))]
    limit = ratio * table[0][1]
    table.append((shapes[-1], seconds(shapes[-1])))
    if table[-1][1] > limit:
        raise StageError(
            f"slim: target: the smallest shape of these axes still takes {table[-1][1] / table[0][1]:.3f} of the "
            f"source's time, not {ratio}; name more axes (`layers`), or a larger share"
        )
    slow, fast = 0, len(shapes) - 1
    while fast - slow > 1:
        middle = (slow + fast) // 2
        table.append((shapes[middle], seconds(shapes[middle])))
        slow, fast = (slow, middle) if table[-1][1] <= limit else (middle, fast)
    return shapes[fast], table


def thin(shapes: Sequence[Shape], count: Callable[[Shape], int]) -> list[Shape]:
    """At most MEASURED of the shapes, evenly spread over their numbers of weights; the first and the last are kept."""
    first, last = count(shapes[0]), count(shapes[-1])
    wanted = [first + (last - first) * step / (MEASURED - 1) for step in range(MEASURED)]
    chosen = {min(range(len(shapes)), key=lambda index: abs(count(shapes[index]) - mark)) for mark in wanted}
    return [shapes[index] for index in sorted(chosen)]
