"""The section of one class: scores, curves, what was found of each defect type, and pictures."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from mambaadv2.image import colour_map
from mambaadv2.report.charts import rate_chart
from mambaadv2.report.facts import Facts
from mambaadv2.report.gallery import encoded
from mambaadv2.report.histogram import score_chart
from mambaadv2.report.summary import bar, percent
from mambaadv2.results import ClassResult, Curves, Figure, Gallery, ImageResult, Points

_HEAD = (
    "<figure class=head aria-hidden=true><span>image</span><span>anomaly map</span>"
    "<span>overlay</span><span>true defect</span><span></span></figure>"
)


def reading_guide(facts: Facts) -> str:
    """How to read the sections of the classes, with the colour scale of all maps."""
    low, high = facts.colour_range
    return (
        "<h2>How to read what follows</h2>\n<p>An image's score is the highest value of its "
        "anomaly map; it is called a defect when the score is above the threshold of its class. "
        "Scores and maps are shown as multiples of that threshold, so 1 is the border everywhere. "
        "Pictures stand in the order image, anomaly map, map over the image (nothing is drawn "
        f"below {low:.2g} × threshold), true defect outlined.</p>\n{_colour_scale(high)}"
    )


def section(name: str, result: ClassResult, facts: Facts, anchor: str) -> str:
    """One class; `anchor` is the id of its heading."""
    parts = [
        f'<h2 id="{anchor}">{escape(name)}</h2>',
        f"<p>{_numbers(result)} {_threshold(name, facts)}</p>",
        "<div class=charts>",
        _scores(name, result, facts),
        _kinds(name, result),
        *_curves(result),
        "</div>",
    ]
    if result.gallery is not None:
        parts.append(_gallery(result, result.gallery))
    return "\n".join(parts)


def _numbers(result: ClassResult) -> str:
    defined = [
        f"{metric} AUROC {percent(result.metrics[f'{metric}_auroc'])} %"
        for metric in ("image", "pixel")
        if result.metrics[f"{metric}_auroc"] is not None
    ]
    counts = [
        f"{part} of {whole} {what}"
        for part, whole, what in (
            (result.n_found, result.n_defect, "defects found"),
            (result.n_flagged, result.n_good, "good images flagged"),
        )
        if whole
    ]
    text = "; ".join((*defined, *counts))
    return f"<strong>{text[:1].upper()}{text[1:]}.</strong>"


def _threshold(name: str, facts: Facts) -> str:
    if name not in facts.thresholds:
        return (
            "The model was not trained on this class: every image was judged as the class it "
            "looks like most."
        )
    images = facts.held_out_images.get(name)
    source = f", from {images} held-out good images" if images else ""
    return f"Threshold {facts.thresholds[name]:.4g} in raw score units{source}."


def _scores(name: str, result: ClassResult, facts: Facts) -> str:
    threshold = facts.thresholds.get(name)
    held = facts.held_out.get(name, ()) if threshold else ()
    chart = score_chart(
        [image.ratio for image in result.images if not image.defect],
        [image.ratio for image in result.images if image.defect],
        [score / threshold for score in held] if threshold else [],
        title="Scores",
    )
    ticks = "; the ticks are the held-out good images behind it" if held else ""
    return (
        f"<div>{chart}<p class=soft>Solid bars are on the wrong side of the threshold{ticks}.</p>"
        "</div>"
    )


def _kinds(name: str, result: ClassResult) -> str:
    rows = "".join(_kind_row(kind, images) for kind, images in result.by_kind().items())
    return (
        "<div><div class=wide><table>\n<thead><tr><th scope=col>Images</th>"
        "<th scope=col colspan=2>called defect</th><th scope=col>median score</th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>{_taken_for_others(name, result)}</div>"
    )


def _taken_for_others(name: str, result: ClassResult) -> str:
    count = sum(image.found_class != name for image in result.images)
    if not count:
        return ""
    return (
        f"<p class=soft>{count} of {len(result.images)} images were taken for another class and "
        "judged by its threshold.</p>"
    )


def _kind_row(kind: str, images: Sequence[ImageResult]) -> str:
    flagged = sum(image.flagged for image in images)
    median = statistics.median(image.ratio for image in images)
    return (
        f"<tr><th scope=row class=text>{escape(kind)}</th><td>{flagged} / {len(images)}</td>"
        f"<td>{bar(flagged, len(images))}</td><td>{median:.2f} ×</td></tr>\n"
    )


def _curves(result: ClassResult) -> list[str]:
    """ROC and precision-recall, of images and of pixels, as far as they are defined."""
    pairs = (("image", result.image_curves), ("pixel", result.pixel_curves))
    curves: dict[str, Curves] = {name: pair for name, pair in pairs if pair is not None}
    if not curves:
        return []
    roc: dict[str, Points] = {}
    precision: dict[str, Points] = {}
    for name, pair in curves.items():
        roc[f"{name}, AUROC {percent(result.metrics[f'{name}_auroc'])}"] = pair.roc
        ap = percent(result.metrics[f"{name}_ap"])
        precision[f"{name}, AP {ap}"] = pair.precision_recall
    both = result.image_curves is not None
    called = result.n_found + result.n_flagged
    recall = result.n_found / max(1, result.n_defect)
    return [
        rate_chart(
            roc,
            title="ROC",
            x_label="good ones flagged (false positive rate)",
            y_label="defects found",
            mark=(result.n_flagged / result.n_good, recall) if both else None,
            mark_name="image, at the threshold",
        ),
        rate_chart(
            precision,
            title="Precision and recall",
            x_label="defects found (recall)",
            y_label="right among the flagged",
            mark=(recall, result.n_found / called) if both and called else None,
            mark_name="image, at the threshold",
        ),
    ]


def _gallery(result: ClassResult, gallery: Gallery) -> str:
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
    verdicts = {True: ("passed", "found"), False: ("false alarm", "missed")}
    verdict = verdicts[image.right][image.defect]
    lines = (
        f"<span class={'right' if image.right else 'wrong'}>{verdict}</span>: "
        f"<strong>{image.ratio:.2f} × threshold</strong>",
        escape(image.kind),
        f"score {image.score:.4g}, threshold {image.threshold:.4g}",
        f"<span class=soft>{escape(image.name).replace('/', '/<wbr>')}</span>",
    )
    return f"<figure>{''.join(pictures)}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _picture(content: bytes, alt: str) -> str:
    return f'<img src="{_data_url(content)}" alt="{escape(alt)}">'


def _data_url(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")


def _colour_scale(high: float) -> str:
    row = colour_map(np.linspace(0.0, high, 256)[None], 0.0, high)
    url = _data_url(encoded(np.repeat(row, 12, axis=0)))
    marks = [(0.0, "0"), (1.0, f"{high:.2g} ×")]
    if high > 1:
        marks.insert(1, (1 / high, "threshold"))
    ticks = "".join(f'<span style="left:{100 * at:.2f}%">{text}</span>' for at, text in marks)
    return (
        f'<div class=scale><img src="{url}" alt="colours of the maps, from 0 to {high:.2g} times '
        f'the threshold"><div>{ticks}</div></div>'
    )
