"""How far a metric of binned scores can be from the metric of the scores themselves.

Bins keep the order of scores that lie in different ones. All that a histogram does not know is the
order of good and defect pixels within one bin; so every metric lies between its value with the
defects of each bin on top and its value with the good pixels of each bin on top. With t and f
counting the defects and good ones above a bin that holds d and g, D and G in all, and the interval
of each metric attained or all but attained by some order (our derivation):

- AUROC: the d * g pairs within a bin count a half each, so it is off by at most
  sum(d * g) / (2 * D * G).
- AP: the i-th defect of a bin, from its top, has precision (t + i) / (t + i + f + g) at least and
  (t + d) / (t + d + f) at most. The former is concave in i, so its sum over i is at least d times
  the mean of the first and the last.
- F1max: the thresholds at the bins' edges are among those of full precision, so it is at least what
  they give; and at most the largest 2 (t + d) / (t + d + f + D), all defects of the bin on top.
- IoU: F1 / (2 - F1) of both ends.
- AUPRO: a pixel adds its weight times the length of FPR from where it is called to the limit. That
  is at f / G with its bin's defects on top and at (f + g) / G with them at the bottom.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambaadv2.metrics.curve import reach
from mambaadv2.metrics.ranking import BLOCK, Ranking, iou_of_f1

Range = tuple[float, float]
"""(lowest, highest) value possible, both 0..1 and inclusive, rounding (1e-12) aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBounds:
    """Where the metrics of the unbinned scores lie."""

    auroc: Range
    average_precision: Range
    f1_max: Range
    iou_max: Range
    aupro: Range

    @property
    def widest(self) -> float:
        """The largest of the intervals' widths."""
        every = (self.auroc, self.average_precision, self.f1_max, self.iou_max, self.aupro)
        return max(high - low for low, high in every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A histogram at the T bins that hold defects, from the highest down.

    ranking: its counts, with the bins' lowest scores as thresholds.
    defect: (T,) defect pixels in each bin.
    n_defect, n_good: pixels in all.
    weights: (T,) region weight in each bin, in any unit. n_regions: the sum of all weights.
    """

    ranking: Ranking
    defect: NDArray[np.int64]
    n_defect: int
    n_good: int
    weights: NDArray[np.floating]
    n_regions: float

    def blocks(self) -> Iterator[Steps]:
        """The same, `BLOCK` bins at a time, so that what is made of them needs little memory."""
        whole = self.ranking
        for start in range(0, self.defect.size, BLOCK):
            part = slice(start, start + BLOCK)
            ranking = Ranking(
                thresholds=whole.thresholds[part],
                true_positives=whole.true_positives[part],
                false_positives=whole.false_positives[part],
                false_positives_above=whole.false_positives_above[part],
            )
            yield dataclasses.replace(
                self, ranking=ranking, defect=self.defect[part], weights=self.weights[part]
            )


def region_area(steps: Steps, limit: float) -> float:
    """AUPRO up to the false positive rate `limit`: pixels of one bin rise along one ramp."""
    area = 0.0
    for part in steps.blocks():
        left = part.ranking.false_positives_above / part.n_good
        right = part.ranking.false_positives / part.n_good
        area += float(reach(left, right, limit) @ part.weights)
    return min(area / (steps.n_regions * limit), 1.0)  # a sum of shares may round above 1


def pixel_bounds(steps: Steps, limit: float, weight_error: float) -> PixelBounds:
    """The intervals of the module's text.

    limit: of AUPRO. weight_error: by how much AUPRO may be off for another reason.
    """
    parts = np.array([_ends(part, limit) for part in steps.blocks()])
    auroc, precision, _, area = parts.sum(axis=0)
    f1_low, f1_high = (float(end) for end in parts[:, 2].max(axis=0))
    return PixelBounds(
        auroc=_range(float(auroc[0]), float(auroc[1])),
        average_precision=_range(float(precision[0]), float(precision[1])),
        f1_max=_range(f1_low, f1_high),
        iou_max=_range(iou_of_f1(f1_low), iou_of_f1(f1_high)),
        aupro=_range(float(area[0]) - weight_error, float(area[1]) + weight_error),
    )


def _ends(part: Steps, limit: float) -> list[tuple[float, float]]:
    """What some bins add to both ends of AUROC and AP, their best F1, what they add to AUPRO."""
    hits = part.ranking.true_positives.astype(np.float64)
    alarms = part.ranking.false_positives.astype(np.float64)
    above = part.ranking.false_positives_above.astype(np.float64)
    first = hits - part.defect + 1
    least = (first / (first + alarms) + hits / (hits + alarms)) / 2
    most = hits / (hits + above)
    share = part.defect / part.n_defect
    whole = part.n_regions * limit
    late = np.clip(limit - alarms / part.n_good, 0.0, None) @ part.weights / whole
    early = np.clip(limit - above / part.n_good, 0.0, None) @ part.weights / whole
    return [
        (share @ (1 - alarms / part.n_good), share @ (1 - above / part.n_good)),
        (share @ least, share @ most),
        (
            (2 * hits / (hits + alarms + part.n_defect)).max(),
            (2 * hits / (hits + above + part.n_defect)).max(),
        ),
        (late, early),
    ]


def _range(low: float, high: float) -> Range:
    return min(max(low, 0.0), 1.0), min(high, 1.0)
