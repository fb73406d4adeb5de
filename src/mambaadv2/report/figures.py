"""Pictures of a page: the worst misses and false alarms in detail, and the scale of colours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from mambaadv2.image import colour_map
from mambaadv2.report.gallery import encoded
from mambaadv2.report.shares import p_text
from mambaadv2.results import ClassResult, Figure, Gallery, ImageResult

_HEAD = (
    "<figure class=head aria-hidden=true><span>image</span><span>anomaly map</span>"
    "<span>overlay</span><span>true defect</span><span></span></figure>"
)
_APART = 0.13  # of the scale's width, between two marks


def detailed(result: ClassResult, gallery: Gallery) -> str:
    """The worst misses and false alarms, and examples of the others."""
    missed = result.n_defect - result.n_found
    misses = f"Worst misses, of {missed}" if missed else "No misses"
    alarms = f"Worst false alarms, of {result.n_flagged}" if result.n_flagged else "No false alarms"
    groups = (
        (f"{misses}: the defects of the lowest scores", gallery.misses),
        (f"{alarms}: the good images of the highest scores", gallery.alarms),
        ("The first of the others, for comparison", gallery.examples),
    )
    return "\n".join(
        f"<h3>{title}</h3>\n{_HEAD}\n" + "\n".join(map(_figure, figures))
        for title, figures in groups
        if figures
    )


def verdict(image: ImageResult) -> str:
    """What the decision was, in a word or two: "missed", "false alarm", "found" or "passed"."""
    verdicts = {True: ("passed", "found"), False: ("false alarm", "missed")}
    return verdicts[image.right][image.defect]


def colour_scale(high: float, marks: Sequence[tuple[float, float]]) -> str:
    """The colours from 0 to `high` thresholds.

    marks: (map / threshold, p-value), p falling, as far as they are known; those that would stand
    too close to another are left out.
    """
    row = colour_map(np.linspace(0.0, high, 256)[None], 0.0, high)
    url = data_url(encoded(np.repeat(row, 12, axis=0)))
    below = [(0.0, "0"), (1.0, f"{high:.2g} ×")]
    if high > 1:
        below.insert(1, (1 / high, "threshold"))
    above = _spread([(at / high, f"p {100 * p:.2g} %") for at, p in marks if 0 <= at <= high])
    ticks = [
        "".join(f'<span style="left:{100 * at:.2f}%">{text}</span>' for at, text in row)
        for row in (above, below)
    ]
    words = f"colours of the maps, from 0 to {high:.2g} times the threshold"
    upper = f"<div class=above>{ticks[0]}</div>" if above else ""
    return f'<div class=scale>{upper}<img src="{url}" alt="{words}"><div>{ticks[1]}</div></div>'


def data_url(content: bytes) -> str:
    """The address that is the WebP file's content itself."""
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")


def _spread(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """From the smallest p-value on, the marks that have room."""
    kept: list[tuple[float, str]] = []
    for at, words in reversed(marks):
        if all(abs(at - other) >= _APART for other, _ in kept):
            kept.append((at, words))
    return kept


def _figure(figure: Figure) -> str:
    image = figure.image
    what = f"{image.kind}, {image.name}"
    pictures = [
        _picture(figure.picture, what),
        _picture(figure.map, f"{what}: anomaly map"),
        _picture(figure.overlay, f"{what}: map over the image"),
    ]
    if figure.outline is not None:
        pictures.append(_picture(figure.outline, f"{what}: true defect outlined"))
    else:
        pictures.append(f"<span class=none>{'no mask' if image.defect else 'good'}</span>")
    p_value = "" if image.p_value is None else f", p {p_text(image.p_value)}"
    lines = (
        f"<span class={'right' if image.right else 'wrong'}>{verdict(image)}</span>: "
        f"<strong>{image.ratio:.2f} × threshold</strong>{p_value}",
        escape(image.kind),
        f"score {image.score:.4g}, threshold {image.threshold:.4g}",
        f"<span class=soft>{escape(image.name).replace('/', '/<wbr>')}</span>",
    )
    return f"<figure>{''.join(pictures)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _picture(content: bytes, alt: str) -> str:
    return f'<img src="{data_url(content)}" alt="{escape(alt)}">'
