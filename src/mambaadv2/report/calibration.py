"""Whether p-values keep their word: the share of good test images below each, with its band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mambaadv2.report.axes import HALO, LINES, Axis, decades, document, frame, text
from mambaadv2.report.charts import CHART
from mambaadv2.report.expected import BAND, Judged, count_range, judged, levels
from mambaadv2.report.shares import plural, share
from mambaadv2.results import ImageResult

NEEDED = 19
"""Held-out images below which not even 5 % can be told."""

_MOST = 60  # steps drawn
_ROOM_FOR_ZERO = 0.4  # decades below the lowest: no image at all has no logarithm
_CHECKED = (0.01, 0.05, 0.1)


def calibration(images: Sequence[ImageResult], held_out: Mapping[str, int]) -> str:
    """A chart and what it says, of the good ones among the images; held_out: images by class."""
    groups = judged(images, dict(held_out))
    if not groups:
        good = any(not image.defect for image in images)
        why = "the model gives no p-values" if good else "there are no good test images"
        return f"<div><p class=soft>No calibration plot: {why}.</p></div>"
    return f"<div>{_chart(groups)}<p class=soft>{' '.join(_sentences(groups))}</p></div>"


def _sentences(groups: Sequence[Judged]) -> list[str]:
    total = sum(len(group.p_values) for group in groups)
    return [_verdict(groups, total), *_shortages(groups, total)]


def _verdict(groups: Sequence[Judged], total: int) -> str:
    smallest = max(1 / (group.held_out + 1) for group in groups)
    parts = []
    for level in [level for level in _CHECKED if level > smallest - 1e-12] or [smallest]:
        counted = sum(group.counted(level) for group in groups)
        low, high = count_range(groups, level)
        said = f"p ≤ {100 * level:.3g} %: {counted} ({share(counted, total)})"
        if counted > high:
            said = f"<strong class=wrong>{said}</strong>, more than"
        elif counted < low:
            said = f"<strong>{said}</strong>, fewer than"
        else:
            said += ", within"
        parts.append(f"{said} the {low} to {high} that chance allows")
    return f"Of {plural(total, 'good test image')}, {'; '.join(parts)}."


def _shortages(groups: Sequence[Judged], total: int) -> list[str]:
    said = []
    fewest = min(group.held_out for group in groups)
    if fewest < 99:
        what = "1 %" if fewest >= NEEDED else "5 %"
        needed = 99 if fewest >= NEEDED else NEEDED
        of = "a class has" if len(groups) > 1 else "the class has"
        said.append(
            f"<strong>Too few held-out images to check {what}:</strong> {of} {fewest}, {what} "
            f"needs {needed}; no p-value below 1 / {fewest + 1} exists there."
        )
    if total < NEEDED + 1:
        said.append(
            f"With {plural(total, 'good test image')} the line moves in steps of "
            f"{100 / total:.0f} %."
        )
    return said


def _chart(groups: Sequence[Judged]) -> str:
    total = sum(len(group.p_values) for group in groups)
    at = levels(groups, _MOST)
    counts = [sum(group.counted(level) for group in groups) for level in at]
    ranges = [count_range(groups, level) for level in at]
    x_ticks, x_names = decades(at[0], -1)
    powers, names = decades(0.5 / total, -1)
    y_ticks, y_names = [powers[0] - _ROOM_FOR_ZERO, *powers], ["0", *names]
    title = "Calibration of p-values"
    texts = (title, "p-value x", "good test images with p ≤ x")
    empty = frame(CHART, x_ticks, y_ticks, texts, left=84, x_names=x_names, y_names=y_names)
    x = [empty.across.at(math.log10(level)) for level in at]

    def height(count: int) -> float:
        return empty.up.at(math.log10(count / total)) if count else empty.up.start

    upper = [height(high) for _, high in ranges]
    lower = [height(low) for low, _ in ranges]
    start = max(x_ticks[0], powers[0])
    promised = (
        f"M{empty.across.at(start):g} {empty.up.at(start):g}L{empty.across.end:g} {empty.up.end:g}"
    )
    parts = [
        _band(x, upper, lower),
        _line("mark", "#1b1f24", 1.2, "4 3", promised),
        _line("c0", LINES[0][0], 2.0, "none", _steps(x, [height(count) for count in counts])),
        *_legend(empty.across, empty.up),
    ]
    return document(CHART, title, (*empty.parts, *parts))


def _steps(x: Sequence[float], y: Sequence[float]) -> str:
    """A path that jumps at every x."""
    path = f"M{x[0]:g} {y[0]:g}"
    for left, height in zip(x[1:], y[1:], strict=True):
        path += f"H{left:g}V{height:g}"
    return path


def _band(x: Sequence[float], upper: Sequence[float], lower: Sequence[float]) -> str:
    there, back = _steps(x, upper), f"V{lower[-1]:g}"
    for number in range(len(x) - 1, 0, -1):
        back += f"V{lower[number]:g}H{x[number]:g}V{lower[number - 1]:g}"
    back += f"H{x[0]:g}Z"
    return f'<path class="f0" d="{there}{back}" fill="{LINES[0][0]}" fill-opacity="0.22"/>'


def _line(kind: str, colour: str, width: float, dashes: str, path: str) -> str:
    return (
        f'<path class="{kind}" d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _legend(across: Axis, up: Axis) -> list[str]:
    x, y = across.end - 146, up.start - 50  # below the diagonal
    rows = (
        ("c0", LINES[0][0], 2.0, "none", "test images"),
        ("mark", "#1b1f24", 1.2, "4 3", "as promised"),
    )
    parts = []
    for number, (kind, colour, width, dashes, words) in enumerate(rows):
        height = y + 18 * number
        parts.append(_line(kind, colour, width, dashes, f"M{x} {height}h26"))
        parts.append(text(x + 34, height + 4, words, "start", HALO))
    height = y + 36
    parts.append(
        f'<rect class="f0" x="{x}" y="{height - 6}" width="26" height="12" '
        f'fill="{LINES[0][0]}" fill-opacity="0.22"/>'
    )
    parts.append(text(x + 34, height + 4, f"{100 * BAND:g} % by chance", "start", HALO))
    return parts
