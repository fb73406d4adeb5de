"""Threshold metrics of one list of scores: AUROC, average precision, best F1.

Every function takes `labels`, 1-D booleans (True is a defect), and `scores`, 1-D floats in any unit
(higher is more anomalous), and is exact: all distinct scores are thresholds, equal scores are one
threshold, and the scores are compared in the precision in which they came. A single class has no
value and raises `UndefinedMetricError`; scores that are not finite, labels that are not boolean and
shapes that do not match raise `ValueError`.

Only the scores of the defects matter as thresholds. Lowering a threshold past good scores alone
moves no defect, so the ROC curve runs straight there, recall stands still and F1 can only fall.
`Ranking` therefore holds counts at the defects' scores only: for pixels that is a few percent of
all of them, and the good ones need a sort of bare values, not of indices. Rankings come in blocks
of `BLOCK` defects, so that counting needs no memory of the size of the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics.curve import Curve, thinned

BLOCK = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Counts at T distinct scores of the defects, from the highest score down.

    thresholds: (T,) floats, strictly falling.
    true_positives: (T,) int64, defects scored at or above the threshold.
    false_positives: (T,) int64, good ones scored at or above the threshold.
    false_positives_above: (T,) int64, good ones scored strictly above it.
    """

    thresholds: NDArray[np.floating]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_positives_above: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingMetrics:
    """The three metrics, each 0..1, the threshold of the best F1 and both curves."""

    auroc: float
    average_precision: float
    f1_max: float
    f1_threshold: float
    """In the unit of the scores; see the function `f1_max`."""
    roc: Curve = field(repr=False)
    """(false positive rate, true positive rate) from (0, 0) to (1, 1)."""
    precision_recall: Curve = field(repr=False)
    """(recall, precision) at the defects' scores, from the highest score on."""

    @property
    def iou_max(self) -> float:
        """Best intersection over union, 0..1: TP / (TP + FP + FN), reached where F1 is best."""
        return iou_of_f1(self.f1_max)


def rank(
    defect: NDArray[np.floating], good: NDArray[np.floating], *, block: int = BLOCK
) -> Iterator[Ranking]:
    """Count at the defects' scores, from the highest on, about `block` defects at a time.

    Both arrays are 1-D, of one dtype, finite and sorted ascending. Equal scores are never parted.
    """
    end = defect.size
    while end:
        start = int(np.searchsorted(defect, defect[max(0, end - block)], side="left"))
        part = defect[start:end]
        first = np.flatnonzero(np.concatenate(([True], part[1:] != part[:-1])))[::-1]
        thresholds = part[first]
        ascending = thresholds[::-1]  # sorted needles keep the binary searches within the cache
        below = np.searchsorted(good, ascending, side="left")[::-1]
        not_above = np.searchsorted(good, ascending, side="right")[::-1]
        yield Ranking(
            thresholds=thresholds,
            true_positives=defect.size - start - first,
            false_positives=good.size - below,
            false_positives_above=good.size - not_above,
        )
        end = start


def ranking_metrics(
    defect: NDArray[np.floating], good: NDArray[np.floating], *, block: int = BLOCK
) -> RankingMetrics:
    """All metrics of `rank`'s counts in one pass; arrays as there.

    Raises `UndefinedMetricError` if either is empty.
    """
    return counted_metrics(rank(defect, good, block=block), defect.size, good.size)


def counted_metrics(parts: Iterable[Ranking], n_defect: int, n_good: int) -> RankingMetrics:
    """All metrics of counts that come in parts, from the highest thresholds on.

    n_defect, n_good: of all. Raises `UndefinedMetricError` if either is 0.
    """
    if not n_defect or not n_good:
        raise UndefinedMetricError(
            f"the metric needs defects and good ones; got {n_defect} defects and {n_good} "
            "good: report it as undefined, not as a number"
        )
    found = twice_below = 0
    precision_sum, best, threshold = 0.0, -1.0, 0.0
    roc: list[tuple[float, float]] = []
    precision_recall: list[tuple[float, float]] = []
    for part in parts:
        hits, alarms, above = part.true_positives, part.false_positives, part.false_positives_above
        before = np.concatenate(([found], hits[:-1]))
        gained = hits - before
        # Twice the good ones below plus those equal: integers, so only the division rounds.
        twice_below += _product(gained, 2 * n_good - alarms - above)
        precision = hits / (hits + alarms)
        precision_sum += float(gained @ precision)
        f1 = 2 * hits / (hits + alarms + n_defect)
        top = int(np.argmax(f1))
        if f1[top] > best:
            best, threshold = float(f1[top]), float(part.thresholds[top])
        # Per threshold two points: past the good ones above it, flat; then over the ties at it.
        rates = np.column_stack((above, alarms)).ravel() / n_good
        roc += thinned(rates, np.column_stack((before, hits)).ravel() / n_defect)
        precision_recall += thinned(hits / n_defect, precision)
        found = int(hits[-1])
    return RankingMetrics(
        auroc=twice_below / (2 * n_defect * n_good),
        average_precision=precision_sum / n_defect,
        f1_max=best,
        f1_threshold=threshold,
        roc=tuple(dict.fromkeys(((0.0, 0.0), *roc, (1.0, 1.0)))),
        precision_recall=tuple(precision_recall),
    )


def iou_of_f1(f1: float) -> float:
    """TP / (TP + FP + FN) from F1 = 2 TP / (2 TP + FP + FN), both 0..1; each rises with the other.

    >>> iou_of_f1(1.0), iou_of_f1(0.5)
    (1.0, 0.3333333333333333)
    """
    return f1 / (2 - f1)


def _product(counts: NDArray[np.int64], others: NDArray[np.int64]) -> int:
    """Their inner product, exact where it has more than 63 bits; both at least 0."""
    low = others & (2**31 - 1)
    return (int(counts @ (others >> 31)) << 31) + int(counts @ low)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, 0..1: the chance that a defect scores above a good one, ties half.

    Hanley and McNeil 1982 (the area is the Mann-Whitney statistic). Equal to scikit-learn's
    `roc_auc_score`.

    >>> auroc([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return image_metrics(labels, scores).auroc


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the defects, 0..1: sum over thresholds of precision x recall gained.

    The step-wise sum of Manning, Raghavan and Schuetze 2008, section 8.4, without interpolation.
    Equal to scikit-learn's `average_precision_score`.

    >>> round(average_precision([False, False, True, True], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return image_metrics(labels, scores).average_precision


def f1_max(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Best F1 over all thresholds, 0..1, and the threshold: a defect is called at or above it.

    F1 is the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979).
    Equal to the maximum along scikit-learn's `precision_recall_curve`. The threshold is in the
    unit of the scores; of several that reach the best F1 it is the highest.

    >>> f1, threshold = f1_max([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    >>> round(f1, 4), threshold
    (0.8, 0.35)
    """
    found = image_metrics(labels, scores)
    return found.f1_max, found.f1_threshold


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> RankingMetrics:
    """`auroc`, `average_precision` and `f1_max` with their curves, from one sort.

    >>> found = image_metrics([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    >>> found.auroc, found.f1_threshold
    (0.75, 0.35)
    >>> found.roc
    ((0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0))
    """
    defect, value = np.asarray(labels), np.asarray(scores)
    if defect.ndim != 1 or value.shape != defect.shape:
        raise ValueError(
            "labels and scores must be 1-D and of one length; "
            f"got shapes {defect.shape} and {value.shape}"
        )
    if defect.size == 0:
        raise UndefinedMetricError("the metric needs defects and good ones; got no score at all")
    if defect.dtype != np.bool_:
        raise ValueError(f"labels must be boolean; got {defect.dtype}: pass `labels == 1` or so")
    if not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"scores must be floating point; got {value.dtype}")
    if not np.isfinite(value).all():
        at = int(np.argmin(np.isfinite(value)))
        raise ValueError(f"scores must be finite; scores[{at}] is {value[at]}")
    return ranking_metrics(np.sort(value[defect]), np.sort(value[~defect]))
