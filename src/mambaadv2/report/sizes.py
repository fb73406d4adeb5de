"""How large a defect must be to be found: recall by the share of the image that it covers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mambaadv2.report.axes import LINES, decades, document, frame
from mambaadv2.report.charts import CHART
from mambaadv2.report.shares import bar, exact_interval, rate_range
from mambaadv2.results import ImageResult

_EDGES = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of the image; the same on every page, so that pages can be compared."""

_RECALLS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@dataclass(frozen=True, slots=True)
class SizeBin:
    """Defects that cover more than `low` and at most `high` of their image."""

    low: float
    high: float
    found: int
    total: int

    @property
    def name(self) -> str:
        """For people: "0.1–0.3 %"."""
        if self.low == 0:
            return f"up to {100 * self.high:g} %"
        return f"{100 * self.low:g}–{100 * self.high:g} %"


def size_bins(images: Sequence[ImageResult]) -> list[SizeBin]:
    """The bins that hold a defect, smallest first; of the defects whose mask has a pixel."""
    shares = [
        (image.defect_pixels / image.pixels, image.flagged)
        for image in images
        if image.defect and image.defect_pixels and image.pixels
    ]
    bins = []
    for low, high in itertools.pairwise(_EDGES):
        inside = [flagged for share, flagged in shares if low < share <= high]
        if inside:
            bins.append(SizeBin(low, high, sum(inside), len(inside)))
    return bins


def size_chart(images: Sequence[ImageResult]) -> str:
    """Recall against size as a chart; nothing where there are no masks."""
    bins = size_bins(images)
    if not bins:
        return ""
    return (
        f"{_drawn(bins)}<p class=soft>The lines are exact 95 % intervals: the fewer defects of a "
        "size, the longer.</p>"
    )


def size_table(images: Sequence[ImageResult]) -> str:
    """The numbers of the chart; nothing where there are no masks."""
    bins = size_bins(images)
    return _table(bins, images) if bins else ""


def _drawn(bins: Sequence[SizeBin]) -> str:
    title = "Recall by size of the defect"
    x_ticks, x_names = decades(max(bins[0].low, 1e-4), -2)
    texts = (title, "share of the image that the defect covers", "defects found (recall)")
    empty = frame(CHART, x_ticks, _RECALLS, texts, left=64, x_names=x_names)
    parts = []
    for one in bins:
        left, right = (
            empty.across.at(max(x_ticks[0], math.log10(edge))) if edge else empty.across.start
            for edge in (one.low, one.high)
        )
        middle = round((left + right) / 2, 2)
        low, high = (empty.up.at(end) for end in exact_interval(one.found, one.total))
        top = empty.up.at(one.found / one.total)
        parts.append(
            f'<rect class="f0" x="{left + 1:g}" y="{top:g}" width="{right - left - 2:g}" '
            f'height="{empty.up.start - top:g}" fill="{LINES[0][0]}" fill-opacity="0.45"/>'
            f'<path class="mark" d="M{middle} {low:g}V{high:g}M{middle - 5} {low:g}h10'
            f'M{middle - 5} {high:g}h10" fill="none" stroke="#1b1f24" stroke-width="1.4"/>'
        )
    return document(CHART, title, (*empty.parts, *parts))


def _table(bins: Sequence[SizeBin], images: Sequence[ImageResult]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{one.name}</th><td>{one.found} / {one.total}</td>"
        f"<td>{bar(one.found, one.total, whiskers=True)}</td>"
        f"<td>{rate_range(one.found, one.total)}</td></tr>\n"
        for one in bins
    )
    unknown = sum(image.defect for image in images) - sum(one.total for one in bins)
    note = f"<p class=soft>{unknown} more without a mask or a marked pixel.</p>" if unknown else ""
    return (
        "<div class=wide><table>\n<thead><tr><th scope=col>Covered</th>"
        "<th scope=col colspan=2>defects found</th><th scope=col>95 %</th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
