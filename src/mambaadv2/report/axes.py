"""What all charts share: round ticks, axes, grid, texts and colours, as parts of an <svg>."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Light, dark, dashes: Okabe and Ito's colours for every kind of colour vision, dashes for print.
LINES = (
    ("#0072b2", "#56b4e9", "none"),
    ("#d55e00", "#ff9e57", "7 3"),
    ("#00805c", "#2fd0a0", "2 3"),
    ("#a6407c", "#e79ac8", "9 3 2 3"),
    ("#8a6d00", "#f0e442", "12 4"),
)
# Light colours are attributes, for programs that know no CSS. Inside an <svg> a style holds for the
# page around it too, hence the prefix. Paper is white, so only a screen may be dark.
_DARK = (
    "@media screen and (prefers-color-scheme: dark){.chart{fill:#c3ccd5} "
    ".chart .grid{stroke:#3a424b} .chart .axis{stroke:#9aa4af} .chart .paper{fill:#12161b} "
    ".chart .halo{stroke:#12161b} .chart .mark{stroke:#e6edf3} "
    + " ".join(
        f".chart .c{kind}{{stroke:{dark}}} .chart .f{kind}{{fill:{dark}}}"
        for kind, (_, dark, _) in enumerate(LINES)
    )
    + "}"
)
_GRID = '<path class="grid" stroke="#d0d7de" d="{}"/>'
HALO = 'class="halo" stroke="#fff" stroke-width="4" paint-order="stroke"'


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps `low`..`high` to the pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 2)


@dataclass(frozen=True, slots=True)
class Frame:
    """An empty chart: its axes, and the parts that draw title, grid, ticks and labels."""

    across: Axis
    up: Axis
    parts: list[str]


def frame(
    size: tuple[int, int],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    texts: tuple[str, str, str],
    *,
    left: int = 84,
    top: int = 44,
    x_names: Sequence[str] | None = None,
    y_names: Sequence[str] | None = None,
) -> Frame:
    """A frame of `size` = (width, height) pixels over evenly spaced ticks.

    texts: title, label of the x axis, label of the y axis. left, top: pixels beside and above the
    plot. x_names, y_names: what stands at the ticks instead of their numbers; for logarithms.
    """
    width, height = size
    title, x_label, y_label = texts
    across = Axis(x_ticks[0], x_ticks[-1], left, width - 30)
    up = Axis(y_ticks[0], y_ticks[-1], height - 52, top)
    parts = [
        text(left, 24, title, "start", 'font-size="15" font-weight="600"'),
        text((across.start + across.end) / 2, height - 10, x_label),
        text(
            0,
            0,
            y_label,
            "middle",
            f'transform="translate(18 {(up.start + up.end) / 2}) rotate(-90)"',
        ),
    ]
    parts += x_grid(across, up, x_ticks, names=x_names)
    parts += y_grid(across, up, y_ticks, names=y_names)
    return Frame(across, up, parts)


def x_grid(
    across: Axis,
    up: Axis,
    ticks: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    labels: bool = True,
) -> list[str]:
    """Upright grid lines over the height of `up`, with or without numbers or names below."""
    parts = []
    for tick, label in _labels(ticks, names):
        parts.append(_GRID.format(f"M{across.at(tick)} {up.end}V{up.start}"))
        if labels:
            parts.append(text(across.at(tick), up.start + 18, label))
    return parts


def y_grid(
    across: Axis, up: Axis, ticks: Sequence[float], *, names: Sequence[str] | None = None
) -> list[str]:
    """Level grid lines over the width of `across`, with their numbers or names to the left."""
    parts = []
    for tick, label in _labels(ticks, names):
        parts.append(_GRID.format(f"M{across.start} {up.at(tick)}H{across.end}"))
        parts.append(text(across.start - 8, up.at(tick) + 4, label, "end"))
    return parts


def decades(smallest: float, lowest: int, highest: int = 0) -> tuple[list[float], list[str]]:
    """Ticks of a logarithmic axis of rates: powers of ten up to 10^highest, and their percents.

    They begin at or below `smallest`, and at 10^lowest at most.

    >>> decades(0.03, -1)
    ([-2.0, -1.0, 0.0], ['1 %', '10 %', '100 %'])
    """
    first = min(lowest, math.floor(math.log10(smallest) + 1e-9))
    powers = range(first, highest + 1)
    return [float(power) for power in powers], [f"{100 * 10.0**power:g} %" for power in powers]


def document(size: tuple[int, int], title: str, parts: Iterable[str]) -> str:
    """An <svg> element of `size` = (width, height) pixels; `title` is its alternative text."""
    width, height = size
    drawn = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#3d444d">\n'
        f"<title>{escape(title)}</title>\n<style>{_DARK}</style>\n"
        f'<rect class="paper" width="{width}" height="{height}" fill="#fff"/>\n{drawn}\n</svg>\n'
    )


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round, evenly spaced numbers from at or below `low` to at or above `high`.

    Two at least; about `about` of them, steps of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(0.13, 0.92, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = math.floor(math.log10(rough))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough * 0.999)
    # Whole multiples, divided rather than multiplied below 1: 3 / 10 is 0.3, 3 * 0.1 is not.
    big, small = factor * 10.0 ** max(power, 0), 10.0 ** max(-power, 0)
    first, last = math.floor(low / big * small + 1e-6), math.ceil(high / big * small - 1e-6)
    return [number * big / small for number in range(first, last + 1)]


def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    """A <text> element; `words` are escaped, `more` are attributes."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def line(number: int, points: Sequence[tuple[float, float]]) -> str:
    """A <polyline> through pixels, in the colour and dashes of a number; one point is a dash."""
    kind = number % len(LINES)
    colour, _, dashes = LINES[kind]
    if len(points) == 1:
        (x, y), dashes = points[0], "none"
        points = [(x - 2, y), (x + 2, y)]
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return (
        f'<polyline class="c{kind}" points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="2" stroke-dasharray="{dashes}"/>'
    )


def _labels(ticks: Sequence[float], names: Sequence[str] | None) -> Iterable[tuple[float, str]]:
    """Each tick with its name, or with as many digits as tell it from the next."""
    if names is not None:
        yield from zip(ticks, names, strict=True)
        return
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    digits = max(0, -math.floor(math.log10(step * 1.001)))
    for tick in ticks:
        if step >= 1e-4 and largest < 1e6:
            yield tick, f"{tick:.{digits}f}"
        else:
            mantissa, power = f"{tick:.{math.ceil(math.log10(largest / step)) + 1}e}".split("e")
            yield tick, f"{float(mantissa):g}e{int(power)}"
