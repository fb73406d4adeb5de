"""What a run leaves for people: a line chart as SVG and a self-contained HTML page.

Both carry their own styles, follow the reader's light or dark setting, use no script and load
nothing from anywhere.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
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

# Pixels of an embedded picture's longer side; larger ones are shrunk.
_LARGEST = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One line of the results: a class or the mean."""

    name: str
    metrics: Mapping[str, float | None]
    """A value in 0..1 for every key of `METRICS`, None where undefined."""
    n_good: int | None = None
    """Good test images, as `n_defect` those with a defect; None leaves the cell empty."""
    n_defect: int | None = None


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
    minutes, rest = divmod(round(seconds), 60)
    duration = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Made by <code>{escape(command)}</code> in {duration}.</p>",
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


def _table(rows: Sequence[TableRow]) -> str:
    groups = Counter(group for _, group, _ in METRICS)
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
    parts = [
        "<p>Each row: the image, the heat of its anomaly map, the true defect outlined. "
        "An image is called defect when its score is above the threshold of its class.</p>",
        _colour_scale(*colour_range),
    ]
    for name in dict.fromkeys(figure.class_name for figure in figures):
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.extend(_figure(each, colour_range) for each in figures if each.class_name == name)
    return "\n".join(parts)


def _figure(figure: Figure, colour_range: tuple[float, float]) -> str:
    if not figure.threshold > 0:
        raise ValueError(f"figures: expected a threshold above 0, got {figure.threshold}")
    what = f"{figure.class_name}, {figure.label}"
    heat = overlay(figure.image, figure.map / figure.threshold, *colour_range, opacity=0.7)
    pictures = [_picture(figure.image, what), _picture(heat, f"{what}: heat map")]
    if figure.mask is None:
        pictures.append("<span class=none>no mask</span>")
    else:
        pictures.append(_picture(outline(figure.image, figure.mask), f"{what}: true mask"))
    right = figure.defect == (figure.label != "good")
    verdict = "correct" if right else "false alarm" if figure.defect else "missed"
    said = "defect" if figure.defect else "good"
    lines = (
        f"<strong>{escape(figure.label)}</strong>",
        f"decision: {said} <span class={'right' if right else 'wrong'}>({verdict})</span>",
        f"score {figure.score:.4g}",
        f"threshold {figure.threshold:.4g}",
        f"{figure.score / figure.threshold:.2f} × threshold",
    )
    return f"<figure>{''.join(pictures)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _picture(rgb: NDArray[np.uint8], alt: str) -> str:
    height, width = rgb.shape[:2]
    shrink = min(1.0, _LARGEST / max(height, width))
    small = resize_image(rgb, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return f'<img src="{_data_url(small)}" alt="{escape(alt)}">'


def _data_url(rgb: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(rgb)).decode("ascii")


def _colour_scale(low: float, high: float) -> str:
    bar = np.repeat(colour_map(np.linspace(low, high, 256)[None], low, high), 12, axis=0)
    marks = [(0.0, f"{low:.2g} ×"), (1.0, f"{high:.2g} ×")]
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
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper);
 color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }}
h2 {{ margin-top: 2.2rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }}
h3 {{ margin: 1.4rem 0 .4rem; font-size: 1.05rem; break-after: avoid; }}
code {{ background: var(--band); padding: .1em .3em; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ caption-side: bottom; text-align: left; padding-top: .4rem; }}
caption, .note, .none {{ color: var(--soft); font-size: .9rem; }} .none {{ text-align: center; }}
th, td {{ padding: .25rem .6rem; text-align: right; white-space: nowrap; }}
thead th[scope=colgroup] {{ text-align: center; color: var(--soft); }}
thead tr:last-child th {{ border-bottom: 2px solid var(--line); }}
tbody tr:nth-child(odd) {{ background: var(--band); }}
tbody tr:last-child:not(:only-child) > * {{ border-top: 2px solid var(--line); font-weight: 600; }}
tr:first-child > th:first-child, th[scope=row] {{ text-align: left; }}
figure {{ display: grid; grid-template-columns: repeat(3, minmax(0, 13rem)) 1fr; gap: .5rem;
 margin: 0 0 .5rem; align-items: center; break-inside: avoid; }}
img, svg {{ max-width: 100%; height: auto; display: block; }} img {{ width: 100%; }}
figcaption {{ padding-left: .5rem; font-size: .9rem; }}
.right {{ color: var(--right); }} .wrong {{ color: var(--wrong); font-weight: 600; }}
.scale {{ max-width: 26rem; margin: 1rem 2rem 3.4rem; }} .scale img {{ height: .9rem; }}
.scale div {{ position: relative; text-align: center; font-size: .85rem; color: var(--soft); }}
.scale span {{ position: absolute; transform: translateX(-50%); white-space: nowrap; }}
.scale span::before {{ content: "|"; display: block; font-size: .5rem; line-height: 1; }}
@media (max-width: 40rem) {{ figure {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }}
 figcaption {{ grid-column: 1 / -1; padding: 0; }} }}
@media print {{ body {{ max-width: none; margin: 0; font-size: 10pt; }}
 figure {{ grid-template-columns: repeat(3, 4.2cm) 1fr; }}
 * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 30, 44, 52
_MOST_POINTS = 1500
# Light, dark, dashes: Okabe and Ito's colours for every kind of colour vision, dashes for print.
_LINES = (
    ("#0072b2", "#56b4e9", "none"),
    ("#d55e00", "#ff9e57", "7 3"),
    ("#00805c", "#2fd0a0", "2 3"),
    ("#a6407c", "#e79ac8", "9 3 2 3"),
    ("#8a6d00", "#f0e442", "12 4"),
)
# Light colours are attributes, for programs that know no CSS. Inside an <svg> a style holds for the
# page around it too, hence the prefix.
_DARK = (
    "@media (prefers-color-scheme: dark){.chart{fill:#c3ccd5} .chart .grid{stroke:#3a424b} "
    ".chart .paper{fill:#12161b} .chart .halo{stroke:#12161b} "
    + " ".join(f".chart .c{kind}{{stroke:{dark}}}" for kind, (_, dark, _) in enumerate(_LINES))
    + "}"
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
    every = [point for points in lines.values() for point in points] or [(0.0, 0.0)]
    xs, ys = zip(*every, strict=True)
    x_ticks = nice_ticks(min(xs), max(xs), 8)
    y_ticks = nice_ticks(0.0 if 0 <= min(ys) <= max(ys) / 2 else min(ys), max(ys), 5)
    across = _Axis(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT)
    up = _Axis(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 24, title, "start", 'font-size="15" font-weight="600"'),
        _text((_LEFT + _WIDTH) / 2, _HEIGHT - 10, x_label),
        _text(0, 0, y_label, "middle", f'transform="translate(18 {_HEIGHT / 2}) rotate(-90)"'),
    ]
    grid = '<path class="grid" stroke="#d0d7de" d="{}"/>'
    for tick, label in _labels(x_ticks):
        parts.append(grid.format(f"M{across.at(tick)} {_TOP}V{up.start}"))
        parts.append(_text(across.at(tick), up.start + 18, label))
    for tick, label in _labels(y_ticks):
        parts.append(grid.format(f"M{_LEFT} {up.at(tick)}H{across.end}"))
        parts.append(_text(_LEFT - 8, up.at(tick) + 4, label, "end"))
    for number, (name, points) in enumerate(lines.items()):
        x, y = across.end - 12, _TOP + 14 + 18 * number
        parts.append(_line(number, [(across.at(x), up.at(y)) for x, y in points]))
        parts.append(_line(number, [(x - 30, y), (x, y)]))
        halo = 'class="halo" stroke="#fff" stroke-width="4" paint-order="stroke"'
        parts.append(_text(x - 38, y + 4, name, "end", halo))
    if not any(lines.values()):
        parts.append(_text(_WIDTH / 2, _HEIGHT / 2, "no data"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="system-ui, sans-serif" '
        f'font-size="13" fill="#3d444d">\n<title>{escape(title)}</title>\n'
        f"<style>{_DARK}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps `low`..`high` to the pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 2)


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


def _labels(ticks: Sequence[float]) -> Iterable[tuple[float, str]]:
    """Each tick with as many digits as tell it from the next."""
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    digits = max(0, -math.floor(math.log10(step * 1.001)))
    for tick in ticks:
        if step >= 1e-4 and largest < 1e6:
            yield tick, f"{tick:.{digits}f}"
        else:
            mantissa, power = f"{tick:.{math.ceil(math.log10(largest / step)) + 1}e}".split("e")
            yield tick, f"{float(mantissa):g}e{int(power)}"


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(number: int, points: Sequence[tuple[float, float]]) -> str:
    kind = number % len(_LINES)
    colour, _, dashes = _LINES[kind]
    if len(points) == 1:
        (x, y), dashes = points[0], "none"
        points = [(x - 2, y), (x + 2, y)]
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline class="c{kind}" points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="2" stroke-dasharray="{dashes}"/>'
    )


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
