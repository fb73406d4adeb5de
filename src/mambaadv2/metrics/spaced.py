"""Metrics over a few evenly spaced thresholds: the rules of other protocols, kept as coarse.

Thresholds stand between a class's lowest and highest score, so one hot pixel moves all of them. A
pixel is called when it is scored above a threshold, not at it. Definitions from ADer
(util/metric.py) and Dinomaly (utils.py), see `mambaadv2.protocols`. They are counted in histograms,
where the scores of one bin are ties at its lower edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Stretch = Literal["none", "from 0", "from the first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spacing:
    """Which metrics have few thresholds; fields as in `Protocol`, None for all thresholds."""

    f1_steps: int | None = None
    aupro_steps: int | None = None
    aupro_stretch: Stretch = "none"
    fpr_limit: float = 0.3


def spaced_rows(
    scores: NDArray[np.floating], good: Rows, defect: Rows, region: Rows, spacing: Spacing
) -> dict[str, Rows]:
    """Of R histograms over the same T bins: "f1_max" and "iou_max", and "aupro", (R,) each.

    scores: (T,), rising. good, defect: (R, T) counts; region: (R, T) region weights in any unit.
    Only metrics with few thresholds are given. NaN where undefined: no defect or no good pixel, one
    score for all pixels, or too few thresholds below the limit of AUPRO.

    >>> counts = np.array([[4.0, 3, 2, 1]]), np.array([[0.0, 1, 1, 2]])
    >>> found = spaced_rows(np.arange(4.0), *counts, counts[1] / 4, Spacing(f1_steps=4))
    >>> round(float(found["f1_max"][0]), 3)
    0.6
    """
    rows = [
        _one(scores, g.astype(np.float64), d.astype(np.float64), r.astype(np.float64), spacing)
        for g, d, r in zip(good, defect, region, strict=True)
    ]
    names = rows[0].keys()
    return {name: np.array([row[name] for row in rows]) for name in names}


def _one(
    scores: NDArray[np.floating], good: Rows, defect: Rows, region: Rows, spacing: Spacing
) -> dict[str, float]:
    found: dict[str, float] = {}
    held = np.flatnonzero(good + defect)
    n_good, n_defect = float(good.sum()), float(defect.sum())
    defined = n_good > 0 and n_defect > 0 and held.size > 1
    low, high = (float(scores[held[0]]), float(scores[held[-1]])) if defined else (0.0, 1.0)
    if spacing.f1_steps is not None:
        at = np.linspace(low, high, spacing.f1_steps)
        hits, alarms = (_above(part, scores, at) for part in (defect, good))
        f1 = float((2 * hits / (hits + alarms + n_defect)).max()) if defined else np.nan
        found |= {"f1_max": f1, "iou_max": f1 / (2 - f1)}
    if spacing.aupro_steps is not None:
        at = np.linspace(low, high, spacing.aupro_steps + 1)[:-1]
        if defined:
            overlap = _above(region, scores, at) / region.sum()
            found["aupro"] = _area(_above(good, scores, at) / n_good, overlap, spacing)
        else:
            found["aupro"] = np.nan
    return found


def _above(counts: Rows, scores: NDArray[np.floating], at: Rows) -> Rows:
    """What of the counts lies strictly above each threshold."""
    sums = np.concatenate((np.cumsum(counts[::-1])[::-1], [0.0]))
    # float64 on both sides: a threshold must not be rounded onto a score.
    first = np.searchsorted(scores.astype(np.float64), at, side="right")
    above: Rows = sums[first]
    return above


def _area(rates: Rows, overlap: Rows, spacing: Spacing) -> float:
    """Under the overlap over the false positive rates, which fall from threshold to threshold."""
    kept = rates < spacing.fpr_limit
    x, y = rates[kept][::-1], overlap[kept][::-1]
    first = x[0] if x.size and spacing.aupro_stretch == "from the first" else 0.0
    if x.size < 2 or x[-1] <= first:
        return float("nan")
    return float(np.trapezoid(y, (x - first) / (x[-1] - first)))
