"""The section of one class: scores, curves, calibration, defects found by type and size, images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from mambaadv2.report.calibration import calibration
from mambaadv2.report.charts import rate_chart
from mambaadv2.report.expected import BAND
from mambaadv2.report.facts import Facts
from mambaadv2.report.figures import colour_scale, detailed
from mambaadv2.report.histogram import score_chart
from mambaadv2.report.shares import bar, interval_range, percent, plural, rate_range
from mambaadv2.report.sizes import size_chart, size_table
from mambaadv2.report.thumbnails import every_image
from mambaadv2.results import ClassResult, Curves, ImageResult, Points

_LONGEST = 32  # characters of a legend's name


def reading_guide(facts: Facts) -> str:
    """How to read the sections of the classes, with the colour scale of all maps."""
    low, high = facts.colour_range
    return (
        "<h2>How to read what follows</h2>\n<p>An image's score is the highest value of its "
        "anomaly map; it is called a defect when the score is above the threshold of its class. "
        "Scores and maps are shown as multiples of that threshold, so 1 is the border everywhere. "
        "A p-value is the share of good images that score as high, at most. In its plot the band "
        f"holds {100 * BAND:g} % of what chance gives at each point, exactly (beta-binomial), if "
        "held-out and test images are alike; a line above it means more false alarms than "
        "promised. "
        "Pictures stand in the order image, anomaly map, map over the image (nothing is drawn "
        f"below {low:.2g} × threshold), true defect outlined.</p>\n{colour_scale(high, ())}"
    )


def section(
    name: str, result: ClassResult, facts: Facts, anchor: str, other: Curves | None = None
) -> str:
    """One class; `anchor` is the id of its heading, `other` the image curves of another run."""
    parts = [
        f'<h2 id="{anchor}">{escape(name)}</h2>',
        f"<p>{_numbers(result)} {_threshold(name, facts)}</p>",
        "<div class=charts>",
        _scores(name, result, facts),
        calibration(result.images, facts.ranked_among),
        *_curves(result, facts.against, other),
        f"<div>{size_chart(result.images)}</div>",
        f"<div>{_kinds(name, result)}{size_table(result.images)}</div>",
        "</div>",
    ]
    if result.gallery is not None:
        marks = facts.colour_marks.get(name, ())
        if marks:
            parts.append(
                f"<h3>Colours of the maps</h3>\n{colour_scale(facts.colour_range[1], marks)}"
            )
        parts.append(detailed(result, result.gallery))
        parts.append(every_image(result, result.gallery.thumbnails, anchor))
    return "\n".join(parts)


def _numbers(result: ClassResult) -> str:
    defined = []
    for metric in ("image", "pixel"):
        value = result.metrics[f"{metric}_auroc"]
        if value is not None:
            ends = interval_range(result.interval(f"{metric}_auroc"))
            defined.append(f"{metric} AUROC {percent(value)} %" + (f" ({ends})" if ends else ""))
    counts = [
        f"{part} of {whole} {what} ({rate_range(part, whole)})"
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
    if name in facts.promises:
        source = f". {escape(facts.promises[name])}"
    else:
        images = facts.held_out_images.get(name)
        source = f", from {plural(images, 'held-out good image')}." if images else "."
    parts = [f"Threshold {facts.thresholds[name]:.4g} in raw score units{source}"]
    if facts.left_out.get(name):
        parts.append(f"Left out: {escape(', '.join(facts.left_out[name]))}.")
    return " ".join(parts)


def _scores(name: str, result: ClassResult, facts: Facts) -> str:
    threshold = facts.thresholds.get(name)
    held = facts.held_out.get(name, ()) if threshold else ()
    chart = score_chart(
        [image.ratio for image in result.images if not image.defect],
        [image.ratio for image in result.images if image.defect],
        [score / threshold for score in held] if threshold else [],
        title="Scores",
    )
    ticks = "; the ticks are the held-out good images" if held else ""
    return (
        f"<div>{chart}<p class=soft>Solid bars are on the wrong side of the threshold{ticks}.</p>"
        "</div>"
    )


def _kinds(name: str, result: ClassResult) -> str:
    rows = "".join(_kind_row(kind, images) for kind, images in result.by_kind().items())
    return (
        "<div class=wide><table>\n<thead><tr><th scope=col>Images</th>"
        "<th scope=col colspan=2>called defect</th><th scope=col>95 %</th>"
        "<th scope=col>median score</th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>{_taken_for_others(name, result)}"
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
        f"<td>{bar(flagged, len(images), whiskers=True)}</td>"
        f"<td>{rate_range(flagged, len(images))}</td><td>{median:.2f} ×</td></tr>\n"
    )


def _curves(result: ClassResult, against: str, other: Curves | None) -> list[str]:
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
    if other is not None:
        short = against if len(against) <= _LONGEST else f"{against[: _LONGEST - 1]}…"
        roc[f"image, {short}"] = other.roc
        precision[f"image, {short}"] = other.precision_recall
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
