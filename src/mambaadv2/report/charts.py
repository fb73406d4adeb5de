"""Charts as <svg> elements: they carry their styles and follow the light or dark setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mambaadv2.report.axes import HALO, Frame, document, frame, line, nice_ticks, text

CHART = (480, 320)
"""(width, height) of the charts that stand two in a row."""

_TALL = (480, 380)  # with room for a legend above the plot
_MOST_POINTS = 1500
_TICKS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (720, 360),
    legend: Literal["left", "right"] = "right",
) -> str:
    """Draw named lines through (x, y) points and return an <svg> element, also fit for a file.

    Points must be in drawing order; those that are not finite are left out. Lines of many points
    are thinned, keeping the extremes. The y axis starts at 0 when the values are close enough to
    it. With no point at all the chart says so. size: (width, height) in pixels. legend: the upper
    corner that the lines leave free.
    """
    lines = {
        name: _thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for name, points in series.items()
    }
    every = [point for points in lines.values() for point in points] or [(0.0, 0.0)]
    xs, ys = zip(*every, strict=True)
    x_ticks = nice_ticks(min(xs), max(xs), 8)
    y_ticks = nice_ticks(0.0 if 0 <= min(ys) <= max(ys) / 2 else min(ys), max(ys), 5)
    empty = frame(size, x_ticks, y_ticks, (title, x_label, y_label))
    x = empty.across.end - 12 if legend == "right" else empty.across.start + 150
    parts = _lines(empty, lines, (x, empty.up.end + 14))
    if not any(lines.values()):
        parts.append(text(size[0] / 2, size[1] / 2, "no data"))
    return document(size, title, (*empty.parts, *parts))


def rate_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, float] | None,
    mark_name: str,
) -> str:
    """Draw curves between rates 0..1 and, as a ring, the point where the model works.

    curves: legend to points, already few enough to draw. mark: None leaves the ring out.
    """
    top = 48 + 18 * (len(curves) + (mark is not None))
    empty = frame(_TALL, _TICKS, _TICKS, (title, x_label, y_label), left=64, top=top)
    # Above the plot: within it a curve may be anywhere.
    x, y = empty.across.end, 44.0
    parts = _lines(empty, curves, (x, y))
    if mark is not None:
        at = (empty.across.at(mark[0]), empty.up.at(mark[1]))
        y += 18 * len(curves)
        for centre in (at, (x - 15, y)):
            parts.append(
                f'<circle class="mark" cx="{centre[0]}" cy="{centre[1]}" r="5" fill="none" '
                'stroke="#1b1f24" stroke-width="2"/>'
            )
        parts.append(text(x - 38, y + 4, mark_name, "end", HALO))
    return document(_TALL, title, (*empty.parts, *parts))


def _lines(
    empty: Frame,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    legend: tuple[float, float],
) -> list[str]:
    """The curves and their legend, whose first row ends at the given pixel."""
    parts = []
    x, top = legend
    for number, (name, points) in enumerate(curves.items()):
        y = top + 18 * number
        parts.append(line(number, [(empty.across.at(a), empty.up.at(b)) for a, b in points]))
        parts.append(line(number, [(x - 30, y), (x, y)]))
        parts.append(text(x - 38, y + 4, name, "end", HALO))
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS`: of every run of points, the lowest and the highest."""
    run = math.ceil(2 * len(points) / _MOST_POINTS)
    if run < 3:
        return list(points)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), run):
        part = points[start : start + run]
        low, high = (pick(part, key=lambda point: point[1]) for pick in (min, max))
        kept.extend(sorted({low, high}, key=part.index))
    return kept
