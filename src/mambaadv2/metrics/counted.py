"""Metrics of many histograms at once, for resampling: rows of counts in, one value per row out.

The definitions are those of `ranking` and `region`, with the scores of a bin as ties.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambaadv2.metrics.curve import reach

Rows = NDArray[np.float64]

_CHUNK = 2**17  # values of one row block: keeps the temporary arrays at 1 MB each


class CountedMetrics(NamedTuple):
    """Each (R,), 0..1, NaN where a row lacks defects or good ones."""

    auroc: Rows
    average_precision: Rows
    f1_max: Rows
    aupro: Rows
    """NaN where no region weights were given."""

    def by_name(self) -> dict[str, Rows]:
        """All of them and "iou_max", TP / (TP + FP + FN) where F1 is best."""
        return {**self._asdict(), "iou_max": self.f1_max / (2 - self.f1_max)}


def counted_rows(
    good: Rows, defect: Rows, region: Rows | None = None, *, fpr_limit: float = 0.3
) -> CountedMetrics:
    """The metrics of R histograms over the same T bins, which rise with the score.

    good, defect: (R, T) counts, not negative. region: (R, T) region weights in any unit.
    """
    rows = max(1, _CHUNK // max(good.shape[-1], 1))
    parts = [
        _rows(
            good[at : at + rows],
            defect[at : at + rows],
            None if region is None else region[at : at + rows],
            fpr_limit,
        )
        for at in range(0, len(good), rows)
    ]
    return CountedMetrics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _rows(good: Rows, defect: Rows, region: Rows | None, limit: float) -> CountedMetrics:
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is how undefined rows become NaN
        n_good = good.sum(axis=-1, keepdims=True)
        n_defect = defect.sum(axis=-1, keepdims=True)
        hits, alarms = (np.cumsum(x[:, ::-1], axis=-1)[:, ::-1] for x in (defect, good))
        right, left = alarms / n_good, (alarms - good) / n_good
        share = defect / n_defect
        precision = hits / np.maximum(hits + alarms, 1)
        defined = np.where((n_good > 0) & (n_defect > 0), 1.0, np.nan)[:, 0]
        area = np.full(len(good), np.nan)
        if region is not None:
            lifted = (reach(left, right, limit) * region).sum(axis=-1)
            area = lifted / (region.sum(axis=-1) * limit)
        found = CountedMetrics(
            auroc=(share * (1 - (left + right) / 2)).sum(axis=-1) * defined,
            average_precision=(share * precision).sum(axis=-1) * defined,
            f1_max=(2 * hits / (hits + alarms + n_defect)).max(axis=-1) * defined,
            aupro=area * defined,
        )
        # Sums of shares may round above 1.
        return CountedMetrics(*(np.minimum(column, 1.0) for column in found))
