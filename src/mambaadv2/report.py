"""What a run leaves for people: a line chart as SVG and a self-contained HTML page.

Both carry their own styles, follow the reader's light or dark setting, use no script and load
nothing from anywhere.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambaadv2.image import colour_map, outline, overlay, png_bytes, resize_image

METRICS: tuple[tuple[str, str, str], ...] = (
    ("image_auroc", "Image", "AUROC"),
    ("image_ap", "Image", "AP"),
    ("image_f1max", "Image", "F1-max"),
    ("pixel_auroc", "Pixel", "AUROC"),
    ("pixel_ap", "Pixel", "AP"),
    ("pixel_f1max", "Pixel", "F1-max"),
    ("pixel_aupro", "Pixel", "AUPRO"),
    ("mad", "All", "mAD"),
)
"""Key, group and heading of the table's columns."""

_LARGEST = 320
"""Longer side of an embedded picture; larger ones are shrunk, smaller ones stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One line of the results: a class or the mean."""

    name: str
    metrics: Mapping[str, float | None]
    """A value in 0..1 for every key of `METRICS`, None where undefined."""
    n_good: int | None = None
    """Good test images; None leaves the cell empty."""
    n_defect: int | None = None
    """Test images with a defect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One test image of the gallery with what the model said about it."""

    class_name: str
    label: str
    """The truth: "good" or the defect type."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    map: NDArray[np.float32]
    """(H, W) anomaly map, in the unit of `threshold`."""
    mask: NDArray[np.bool_] | None
    """(H, W) true defect; None where there is no ground truth."""
    score: float
    threshold: float
    """Above 0; the score from which on the model says defect."""
    defect: bool
    """The model's decision."""


def write_demo_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    command: str,
    seconds: float,
    table_rows: Sequence[TableRow],
    figures: Sequence[Figure],
    loss_svg: str,
    colour_range: tuple[float, float],
    notes: Sequence[str] = (),
) -> None:
    """Write one HTML page with the results table, a gallery and the training curve.

    `command` made the page and `seconds` is how long it took. `table_rows` are shown in their
    order, `figures` grouped by class. `loss_svg` comes from `line_chart`. `colour_range` is where
    the heat colours begin and end, in multiples of the threshold (low < 1 < high is usual).
    `notes` are shown under the table. All texts are escaped.

    Raises `ValueError` for a row that lacks a metric, for a threshold that is not above 0, and for
    pictures that do not fit together.
    """
    if not loss_svg.startswith("<svg"):
        raise ValueError("loss_svg: expected the <svg> element that line_chart returns")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Made by <code>{escape(command)}</code> in {_duration(seconds)}.</p>",
        "<h2>Results</h2>",
        _table(table_rows),
        *(f"<p class=note>{escape(note)}</p>" for note in notes),
        "<h2>Gallery</h2>",
        _gallery(figures, colour_range),
        "<h2>Training</h2>",
        loss_svg,
    ]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_PAGE.format(title=escape(title), body="\n".join(parts)), encoding="utf-8")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return (f"{hours} h " if hours else "") + f"{rest // 60} min {rest % 60} s"


def _table(rows: Sequence[TableRow]) -> str:
    groups: dict[str, int] = {}
    for _, group, _ in METRICS:
        groups[group] = groups.get(group, 0) + 1
    head = "".join(f"<th colspan={n} scope=colgroup>{group}</th>" for group, n in groups.items())
    names = "".join(f"<th scope=col>{heading}</th>" for _, _, heading in METRICS)
    return (
        "<div class=wide><table>\n<caption>In percent; higher is better. A dash means that the "
        "metric is undefined there. mAD is the mean of the seven others.</caption>\n"
        "<thead><tr><th rowspan=2 scope=col>Class</th><th colspan=2 scope=colgroup>Test images"
        f"</th>{head}</tr>\n<tr><th scope=col>good</th><th scope=col>defect</th>{names}</tr>"
        f"</thead>\n<tbody>\n{''.join(map(_table_row, rows))}</tbody></table></div>"
    )


def _table_row(row: TableRow) -> str:
    missing = [key for key, _, _ in METRICS if key not in row.metrics]
    if missing:
        raise ValueError(f"table_rows: the row {row.name!r} lacks {', '.join(missing)}")
    counts = ("" if count is None else str(count) for count in (row.n_good, row.n_defect))
    values = (_percent(row, key) for key, _, _ in METRICS)
    cells = "".join(f"<td>{cell}</td>" for cell in (*counts, *values))
    return f"<tr><th scope=row>{escape(row.name)}</th>{cells}</tr>\n"


def _percent(row: TableRow, key: str) -> str:
    value = row.metrics[key]
    if value is None:
        return "–"
    if not 0 <= value <= 1:
        raise ValueError(f"table_rows: {key} of {row.name!r}: expected 0..1 or None, got {value}")
    return f"{100 * value:.1f}"


def _gallery(figures: Sequence[Figure], colour_range: tuple[float, float]) -> str:
    by_class: dict[str, list[Figure]] = {}
    for figure in figures:
        by_class.setdefault(figure.class_name, []).append(figure)
    parts = [
        "<p>Each row: the image, the heat of its anomaly map, the true defect outlined. "
        "An image is called defect when its score is above the threshold of its class.</p>",
        _colour_scale(*colour_range),
    ]
    for name, members in by_class.items():
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.extend(_figure(figure, colour_range) for figure in members)
    return "\n".join(parts)


def _figure(figure: Figure, colour_range: tuple[float, float]) -> str:
    if not figure.threshold > 0:
        raise ValueError(f"figures: expected a threshold above 0, got {figure.threshold}")
    what = f"{figure.class_name}, {figure.label}"
    heat = overlay(figure.image, figure.map / figure.threshold, *colour_range, opacity=0.7)
    pictures = [_picture(figure.image, what), _picture(heat, f"{what}: heat map")]
    if figure.mask is not None:
        pictures.append(_picture(outline(figure.image, figure.mask), f"{what}: true mask"))
    else:
        pictures.append("<span class=none>no mask</span>")
    verdict = {
        (True, True): "found",
        (True, False): "false alarm",
        (False, True): "missed",
        (False, False): "correct",
    }[figure.defect, figure.label != "good"]
    return (
        f"<figure>{''.join(pictures)}<figcaption>"
        f"<strong>{escape(figure.label)}</strong><br>"
        f"decision: {'defect' if figure.defect else 'good'} "
        f"<span class='{'right' if verdict in ('found', 'correct') else 'wrong'}'>({verdict})"
        f"</span><br>score {figure.score:.4g}<br>threshold {figure.threshold:.4g}<br>"
        f"{figure.score / figure.threshold:.2f} × threshold</figcaption></figure>"
    )


def _picture(rgb: NDArray[np.uint8], alt: str) -> str:
    height, width = rgb.shape[:2]
    shrink = min(1.0, _LARGEST / max(height, width))
    small = resize_image(rgb, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return f'<img src="{_data_url(small)}" alt="{escape(alt)}">'


def _data_url(rgb: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(rgb)).decode("ascii")


def _colour_scale(low: float, high: float) -> str:
    bar = np.repeat(colour_map(np.linspace(low, high, 256)[None], low, high), 12, axis=0)
    marks = [(0.0, f"{low:g} ×"), (1.0, f"{high:g} ×")]
    if low < 1 < high:
        marks.insert(1, ((1 - low) / (high - low), "threshold"))
    ticks = "".join(f'<span style="left:{100 * at:.2f}%">{text}</span>' for at, text in marks)
    return (
        f'<div class=scale><img src="{_data_url(bar)}" alt="colour scale from {low:g} to {high:g} '
        f'times the threshold"><div>{ticks}</div></div>'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --band: #f4f6f8;
 --right: #1a7f37; --wrong: #b42318; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6edf3; --soft: #9aa4af; --line: #3a424b;
 --paper: #12161b; --band: #1b2128; --right: #4ac26b; --wrong: #ff8a7a; }} }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper);
 color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; }}
h2 {{ margin-top: 2.2rem; font-size: 1.25rem; border-bottom: 1px solid var(--line); }}
h3 {{ margin: 1.4rem 0 .4rem; font-size: 1.05rem; }}
code {{ background: var(--band); padding: .1em .3em; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ caption-side: bottom; text-align: left; padding-top: .4rem; }}
caption, .note {{ color: var(--soft); font-size: .9rem; }}
th, td {{ padding: .25rem .6rem; text-align: right; white-space: nowrap; }}
thead th {{ font-weight: 600; font-size: .9rem; }}
thead th[scope=colgroup] {{ text-align: center; color: var(--soft); }}
thead tr:last-child th {{ border-bottom: 2px solid var(--line); }}
tbody tr:nth-child(odd) {{ background: var(--band); }}
tbody tr:last-child:not(:only-child) > * {{ border-top: 2px solid var(--line); font-weight: 600; }}
th:first-child {{ text-align: left; }}
figure {{ display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)) 11rem; gap: .5rem;
 margin: 0 0 .5rem; align-items: center; break-inside: avoid; }}
figure img {{ width: 100%; height: auto; display: block; }}
figcaption {{ padding-left: .5rem; font-size: .9rem; font-variant-numeric: tabular-nums; }}
.right {{ color: var(--right); }} .wrong {{ color: var(--wrong); font-weight: 600; }}
.none {{ color: var(--soft); text-align: center; }}
.scale {{ max-width: 26rem; margin: 1rem 2rem 2.2rem; }}
.scale img {{ width: 100%; height: .9rem; display: block; }}
.scale div {{ position: relative; height: 1.4rem; font-size: .85rem; color: var(--soft); }}
.scale span {{ position: absolute; transform: translateX(-50%); white-space: nowrap;
 padding-top: .35rem; }}
.scale span::before {{ content: ""; position: absolute; left: 50%; top: 0; height: .4rem;
 border-left: 1px solid var(--ink); }}
svg {{ max-width: 100%; height: auto; }}
@media (max-width: 40rem) {{ figure {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }}
 figcaption {{ grid-column: 1 / -1; padding: 0; }} }}
@media print {{ body {{ max-width: none; margin: 0; font-size: 10pt; }}
 figure {{ grid-template-columns: repeat(3, 4.2cm) auto; }}
 * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 18, 44, 52
_MOST_POINTS = 1500
# Okabe and Ito's colours for every kind of colour vision; the dashes tell them apart in print.
_LINES = (
    ("#0072b2", "#56b4e9", ""),
    ("#d55e00", "#ff9e57", "7 3"),
    ("#00805c", "#2fd0a0", "2 3"),
    ("#a6407c", "#e79ac8", "9 3 2 3"),
    ("#8a6d00", "#f0e442", "12 4"),
)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """Draw named lines through (x, y) points and return an <svg> element, also fit for a file.

    Points must be in drawing order; those that are not finite are left out. Lines of many points
    are thinned, keeping the extremes. The y axis starts at 0 when the values are close enough to
    it. With no point at all the chart says so.
    """
    lines = {
        name: _thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for name, points in series.items()
    }
    every = [point for points in lines.values() for point in points]
    xs, ys = [x for x, _ in every] or [0.0], [y for _, y in every] or [0.0]
    floor = 0.0 if 0 <= min(ys) <= max(ys) / 2 else min(ys)
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs), 8), nice_ticks(floor, max(ys), 5)
    # The x axis ends with the data, so that no empty strip is left at the right.
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (x_ticks[0], x_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x_low) / (x_high - x_low)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            _LEFT + right * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_axes(x_ticks, y_ticks, (x_low, x_high), place, (x_label, y_label))]
    for number, (name, points) in enumerate(lines.items()):
        parts.append(_line(number, [place(x, y) for x, y in points]))
        parts.append(_legend(number, name))
    if not every:
       
        parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT /
        2}" text-anchor="middle">no data</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{_chart_style()}</style>\n"
        f'<text class="head" x="{_LEFT}" y="24">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
