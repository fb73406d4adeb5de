"""Threshold metrics of one list of scores: AUROC, average precision, best F1.

Every function takes `labels`, 1-D booleans (True is a defect), and `scores`, 1-D floats in any unit
(higher is more anomalous), and is exact: all distinct scores are thresholds, equal scores are one
threshold, and the scores are compared in the precision in which they came. A single class has no
value and raises `UndefinedMetricError`; scores that are not finite, labels that are not boolean and
shapes that do not match raise `ValueError`.

Only the scores of the defects matter as thresholds. Lowering a threshold past good scores alone
moves no defect, so the ROC curve runs straight there, recall stands still and F1 can only fall.
`Ranking` therefore holds counts at the defects' scores only: for pixels that is a few percent of
all of them, and the good ones need a sort of bare values, not of indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.errors import UndefinedMetricError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Counts at the T distinct scores of the defects, from the highest score down.

    thresholds: (T,) floats, strictly falling.
    true_positives: (T,) int64, defects scored at or above the threshold; the last is all of them.
    false_positives: (T,) int64, good ones scored at or above the threshold.
    false_positives_above: (T,) int64, good ones scored strictly above it.
    n_good: all good ones.
    """

    thresholds: NDArray[np.floating]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_positives_above: NDArray[np.int64]
    n_good: int

    @property
    def n_defect(self) -> int:
        """All defects."""
        return int(self.true_positives[-1])

    def auroc(self) -> float:
        """See the function `auroc`."""
        defects = np.diff(self.true_positives, prepend=0)
        # Twice the good ones below plus those equal: integers, so only the division rounds.
        twice_below = 2 * self.n_good - self.false_positives - self.false_positives_above
        return int(defects @ twice_below) / (2 * self.n_defect * self.n_good)

    def average_precision(self) -> float:
        """See the function `average_precision`."""
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(np.diff(self.true_positives, prepend=0) @ precision / self.n_defect)

    def f1_max(self) -> tuple[float, float]:
        """See the function `f1_max`."""
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + self.n_defect)
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.thresholds[best])


def rank(defect: NDArray[np.floating], good: NDArray[np.floating]) -> Ranking:
    """Count at the defects' scores. Both arrays are 1-D, of one dtype, finite and sorted ascending.

    Raises `UndefinedMetricError` if either is empty.
    """
    if not defect.size or not good.size:
        raise UndefinedMetricError(
            f"the metric needs defects and good ones; got {defect.size} defects and {good.size} "
            "good: report it as undefined, not as a number"
        )
    first = np.flatnonzero(np.concatenate(([True], defect[1:] != defect[:-1])))[::-1]
    thresholds = defect[first]
    ascending = thresholds[::-1]  # sorted needles keep the binary searches within the cache
    below = np.searchsorted(good, ascending, side="left")[::-1]
    not_above = np.searchsorted(good, ascending, side="right")[::-1]
    return Ranking(
        thresholds=thresholds,
        true_positives=defect.size - first,
        false_positives=good.size - below,
        false_positives_above=good.size - not_above,
        n_good=good.size,
    )


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, 0..1: the chance that a defect scores above a good one, ties half.

    Hanley and McNeil 1982 (the area is the Mann-Whitney statistic). Equal to scikit-learn's
    `roc_auc_score`.

    >>> auroc([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return _ranking(labels, scores).auroc()


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the defects, 0..1: sum over thresholds of precision x recall gained.

    The step-wise sum of Manning, Raghavan and Schuetze 2008, section 8.4, without interpolation.
    Equal to scikit-learn's `average_precision_score`.

    >>> round(average_precision([False, False, True, True], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return _ranking(labels, scores).average_precision()


def f1_max(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Best F1 over all thresholds, 0..1, and the threshold: a defect is called at or above it.

    F1 is the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979).
    Equal to the maximum along scikit-learn's `precision_recall_curve`. The threshold is in the
    unit of the scores; of several that reach the best F1 it is the highest.

    >>> f1, threshold = f1_max([False, False, True, True], [0.1, 0.4, 0.35, 0.8])
    >>> round(f1, 4), threshold
    (0.8, 0.35)
    """
    return _ranking(labels, scores).f1_max()


def _ranking(labels: ArrayLike, scores: ArrayLike) -> Ranking:
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
    return rank(np.sort(value[defect]), np.sort(value[~defect]))
