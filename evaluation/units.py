"""Numbers as people read them: bytes, seconds, shares, ratios, intervals, alike in the terminal, Markdown and HTML.

Bytes are decimal (1 MB = 10^6 B), as disks and downloads count them.
"""

from evaluation.measurement import Interval, metric_of

TIMES, MINUS, DASH = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{EN DASH}"

BYTE_UNITS: dict[str, float] = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
COUNT_UNITS: dict[str, float] = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}


def scale_of(metric: str, value: float) -> tuple[float, str]:
    """What to divide a metric's values by, and the unit they then have, so that `value` reads well."""
    unit, size = metric_of(metric).unit, abs(value)
    if unit == "share":
        return 0.01, "%"
    if unit == "count":
        return _largest(COUNT_UNITS, size)
    if unit == "B":
        return _largest(BYTE_UNITS, size)
    if unit == "s":
        return (1.0, "s") if size >= 1 else (1e-3, "ms") if size >= 1e-4 else (1e-6, "µs")
    return 1.0, unit


def _largest(units: dict[str, float], value: float) -> tuple[float, str]:
    fitting = ((factor, unit) for unit, factor in units.items() if abs(value) >= factor)
    smallest = min(((factor, unit) for unit, factor in units.items()), key=lambda pair: pair[0])
    return next(fitting, smallest)


def format_value(metric: str, value: float) -> str:
    """Such as "27.3 MB", "2.31 ms", "37.2 %", "23.4"."""
    factor, unit = scale_of(metric, value)
    return f"{format_number(value / factor)} {unit}".rstrip()


def format_interval(metric: str, interval: Interval, like: float) -> str:
    """Such as "2.28 to 2.41", in the unit that `format_value(metric, like)` has."""
    factor, _ = scale_of(metric, like)
    return f"{format_number(interval.low / factor)} to {format_number(interval.high / factor)}"


def format_change(metric: str, value: float) -> str:
    """Such as "+1.20 MB" or "\N{MINUS SIGN}0.0310": a difference with its sign."""
    sign = MINUS if value < 0 else "+"
    return f"{sign}{format_value(metric, abs(value))}"


def format_ratio(value: float) -> str:
    """Such as "0.253x" or "1.042x": three digits after the point, so that one part in a thousand shows."""
    return f"{value:.3f}{TIMES}" if abs(value) < 10 else f"{value:.1f}{TIMES}"


def format_ratio_interval(interval: Interval) -> str:
    """Such as "0.250 to 0.256"."""
    return f"{format_ratio(interval.low)[:-1]} to {format_ratio(interval.high)[:-1]}"


def format_number(value: float) -> str:
    """Three significant digits without an exponent where that is readable: "0.0123", "23.4", "1,234"."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def format_duration(seconds: float) -> str:
    """Such as "0.8 s", "42 s", "3 min 20 s", "1 h 05 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
