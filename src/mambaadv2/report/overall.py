"""All classes as one stream of images, made comparable by dividing scores by their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from mambaadv2.metrics import RankingMetrics, image_metrics
from mambaadv2.report.calibration import calibration
from mambaadv2.report.charts import rate_chart
from mambaadv2.report.facts import Facts
from mambaadv2.report.histogram import score_chart
from mambaadv2.report.shares import percent, rate_range
from mambaadv2.report.sizes import size_chart, size_table
from mambaadv2.results import Curves, Evaluation, ImageResult


def overall(evaluation: Evaluation, facts: Facts) -> str:
    """Scores, calibration, ROC and sizes over all images; nothing for a single class."""
    images = list(chain.from_iterable(c.images for c in evaluation.classes.values()))
    if len(evaluation.classes) < 2 or not images:
        return ""
    chart = score_chart(
        [image.ratio for image in images if not image.defect],
        [image.ratio for image in images if image.defect],
        [],
        title="Scores",
    )
    parts = [
        '<h2 id="all">All classes together</h2>',
        f"<p>{_words(images)}</p>",
        "<div class=charts>",
        f"<div>{chart}<p class=soft>Solid bars are on the wrong side of the threshold.</p></div>",
        calibration(images, facts.ranked_among),
        *_roc(images),
        f"<div>{size_chart(images)}{size_table(images)}</div>",
        "</div>",
    ]
    return "\n".join(parts)


def image_curves(images: Sequence[ImageResult]) -> Curves | None:
    """The curves that the protocol's image scores of one class have; None where undefined."""
    found = _ranking(images, [image.ranking for image in images])
    if found is None:
        return None
    return Curves(roc=found.roc, precision_recall=found.precision_recall)


def _words(images: Sequence[ImageResult]) -> str:
    words = (
        "As one stream of parts of every class, each judged by its class's threshold. Scores are "
        "divided by it, so that the classes can stand in one ranking."
    )
    for defect, what in ((True, "defects found"), (False, "good images flagged")):
        kind = [image for image in images if image.defect == defect]
        if kind:
            flagged = sum(image.flagged for image in kind)
            words += f" {flagged} of {len(kind)} {what} ({rate_range(flagged, len(kind))})."
    return words


def _roc(images: Sequence[ImageResult]) -> list[str]:
    found = _ranking(images, [image.ratio for image in images])
    if found is None:
        return []
    good = [image.flagged for image in images if not image.defect]
    defect = [image.flagged for image in images if image.defect]
    chart = rate_chart(
        {f"all images, AUROC {percent(found.auroc)}": found.roc},
        title="ROC",
        x_label="good ones flagged (false positive rate)",
        y_label="defects found",
        mark=(sum(good) / len(good), sum(defect) / len(defect)),
        mark_name="at the thresholds",
    )
    return [
        f"<div>{chart}<p class=soft>Of score / threshold over all images: one line with one "
        "common setting. It is not the mean of the classes' AUROC.</p></div>"
    ]


def _ranking(images: Sequence[ImageResult], scores: Sequence[float]) -> RankingMetrics | None:
    labels = np.array([image.defect for image in images], dtype=np.bool_)
    if not labels.any() or labels.all():
        return None
    return image_metrics(labels, np.array(scores, dtype=np.float64))
