"""Numbers as a reader wants them: percent, counts, and the interval that a count allows."""

from __future__ import annotations

import math

from mambaadv2.metrics import Interval
from mambaadv2.results import LEVEL, ends


def exact_interval(part: int, whole: int) -> tuple[float, float]:
    """The Clopper-Pearson interval of a rate: `part` of `whole` images were counted.

    Covers the true rate in at least `LEVEL` of all cases, whatever the rate (Clopper and Pearson
    1934). Raises `ValueError` unless 0 <= part <= whole and whole >= 1.

    >>> [round(end, 3) for end in exact_interval(0, 30)]
    [0.0, 0.116]
    """
    if not 0 <= part <= whole or whole < 1:
        raise ValueError(f"expected 0 <= part <= whole and whole >= 1, got {part} of {whole}")
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(part, whole - part + 1, tail)) if part else 0.0
    high = float(betaincinv(part + 1, whole - part, 1 - tail)) if part < whole else 1.0
    return low, high


def percent(value: float | None) -> str:
    """In percent with one decimal, a dash where undefined."""
    if value is None:
        return "–"
    if not 0 <= value <= 1:
        raise ValueError(f"expected a metric in 0..1 or None, got {value}")
    return f"{100 * value:.1f}"


def share(part: int, whole: int) -> str:
    """A part in percent, whole numbers only at the ends: 99.9 % never reads as 100."""
    if part in (0, whole):
        return f"{100 * part // whole} %"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f} %"


def rate_range(part: int, whole: int) -> str:
    """The exact interval in percent, for example "0–11.6 %"; a dash for no image."""
    if not whole:
        return "–"
    return f"{'–'.join(_end(end) for end in exact_interval(part, whole))} %"


def interval_range(interval: Interval | None) -> str:
    """Both ends in percent with one decimal; empty where there is no interval."""
    return ends(interval, "–")


def p_text(p_value: float | None) -> str:
    """A p-value with two digits, a dash where the model gave none.

    >>> p_text(1 / 33), p_text(1.0), p_text(None)
    ('0.030', '1.0', '–')
    """
    if p_value is None:
        return "–"
    return f"{p_value:#.2g}"


def bar(part: int, whole: int, *, whiskers: bool = False) -> str:
    """A bar as wide as the part is of the whole, with or without its exact interval as a line."""
    line = ""
    if whiskers:
        low, high = exact_interval(part, whole)
        line = f'<b style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></b>'
    kind = '"bar ends"' if whiskers else "bar"
    return f'<span class={kind}><i style="width:{100 * part / whole:.1f}%"></i>{line}</span>'


def plural(count: int, word: str) -> str:
    """The count with its word: "1 image", "2 images"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def rounded_up(bound: float) -> str:
    """A bound with one digit, never below it.

    >>> rounded_up(0.00021), rounded_up(0.02), rounded_up(0.0)
    ('0.0003', '0.02', '0')
    """
    if bound <= 0:
        return "0"
    power = 10.0 ** math.floor(math.log10(bound))
    return f"{math.ceil(bound / power - 1e-9) * power:.1g}"


def _end(value: float) -> str:
    return f"{100 * value:.0f}" if value in (0.0, 1.0) else f"{100 * value:.1f}"
