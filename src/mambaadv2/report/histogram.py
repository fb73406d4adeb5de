"""Where the scores of good images and of defects lie, and on which side of the threshold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mambaadv2.report.axes import HALO, LINES, Axis, document, nice_ticks, text, x_grid, y_grid
from mambaadv2.report.charts import CHART

MOST_RATIO = 4.0
"""The last bin holds all scores above this many thresholds."""

_BINS = 36  # about
_LEFT, _RIGHT = 64, 30
_GOOD, _DEFECT = (152.0, 62.0), (268.0, 186.0)  # bottom and top of the two panels


def score_chart(
    good: Sequence[float], defect: Sequence[float], held_out: Sequence[float], *, title: str
) -> str:
    """Two histograms of score / threshold over one axis: good images above, defects below.

    A line marks the threshold at 1 and no bar lies across it; bars on its wrong side are solid.
    held_out: ratios of the good images that the threshold comes from, as ticks under the good
    ones; may be empty. Returns an <svg> element.
    """
    every = [min(value, MOST_RATIO) for value in (*good, *defect, *held_out)] or [1.0]
    low, high = min(*every, 0.9), max(*every, 1.1)
    steps = nice_ticks(low, high, _BINS)
    width = steps[1] - steps[0]
    ticks = nice_ticks(low, high, 7)
    across = Axis(ticks[0], ticks[-1], _LEFT, CHART[0] - _RIGHT)
    parts = [
        text(_LEFT, 24, title, "start", 'font-size="15" font-weight="600"'),
        text((across.start + across.end) / 2, CHART[1] - 10, "score / threshold"),
        text(0, 0, "images", "middle", f'transform="translate(18 {CHART[1] / 2}) rotate(-90)"'),
    ]
    parts += _panel(0, f"good: {len(good)}", good, across, ticks, width, _GOOD)
    parts += _panel(1, f"defect: {len(defect)}", defect, across, ticks, width, _DEFECT)
    parts += [_tick(across.at(min(value, MOST_RATIO))) for value in held_out]
    x = across.at(1.0)
    parts.append(
        f'<path class="mark" d="M{x} {_GOOD[1] - 8}V{_DEFECT[0]}" stroke="#1b1f24" '
        'stroke-width="1.5" stroke-dasharray="5 3"/>'
    )
    parts.append(text(min(max(x, _LEFT + 110), across.end - 30), 46, "threshold"))
    return document(CHART, title, parts)


def _panel(
    kind: int,
    name: str,
    values: Sequence[float],
    across: Axis,
    ticks: Sequence[float],
    width: float,
    room: tuple[float, float],
) -> list[str]:
    """One histogram; kind: 0 for good images, 1 for defects, as their colours."""
    counts = Counter(_bin(value, width) for value in values)
    most = max(counts.values(), default=1)
    up = Axis(0.0, 1.3 * most, *room)  # with room for the name above the bars
    parts = x_grid(across, up, ticks, labels=kind == 1)
    parts += y_grid(across, up, [0.0, float(most)])
    colour = LINES[kind][0]
    for number, count in sorted(counts.items()):
        left, right = (across.at(_edge(n, width, across)) for n in (number - 1, number))
        wrong = (number > 0) == (kind == 0)
        parts.append(
            f'<rect class="f{kind}" x="{left:g}" y="{up.at(count):g}" '
            f'width="{max(0.5, right - left - 1):g}" height="{up.start - up.at(count):g}" '
            f'fill="{colour}" fill-opacity="{1 if wrong else 0.45}"/>'
        )
    over = sum(value > MOST_RATIO for value in values)
    more = f", {over} above {MOST_RATIO:g}" if over else ""
    return [*parts, text(across.end - 6, up.end + 12, name + more, "end", HALO)]


def _bin(value: float, width: float) -> int:
    """Bin n holds 1 + (n - 1) x width < value <= 1 + n x width: 0 and below is not flagged."""
    return math.ceil((min(value, MOST_RATIO) - 1) / width - 1e-9)


def _edge(number: int, width: float, across: Axis) -> float:
    return min(max(1 + number * width, across.low), across.high)


def _tick(x: float) -> str:
    bottom = _GOOD[0]
    return f'<path class="axis" d="M{x} {bottom + 2}v8" stroke="#57606a" stroke-width="1.5"/>'
