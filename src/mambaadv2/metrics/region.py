"""Pixel metrics of a set of anomaly maps, among them AUPRO, which counts all defect regions alike.

`masks` are boolean (H, W), True where a pixel is defective; `maps` are float (H, W) in any unit,
higher is more anomalous. Each map has its mask's size; the images may differ in size. Images
without a defect belong in both lists with an all-false mask.

Per-region overlap (PRO) at a threshold is the share of a region's pixels at or above it, averaged
over all regions of all images; a region is a connected component of the mask with 8 neighbours. So
a pixel of a region of n pixels adds 1 / (n x number of regions) once the threshold reaches it, and
the whole curve is a running sum over the defect pixels in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics.ranking import Ranking, rank

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelMetrics:
    """The four pixel metrics, each 0..1; the threshold of the best F1, in the unit of the maps."""

    auroc: float
    average_precision: float
    f1_max: float
    f1_threshold: float
    aupro: float


def pixel_metrics(
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.floating]],
    *,
    fpr_limit: float = 0.3,
) -> PixelMetrics:
    """AUROC, average precision, best F1 (over all pixels as one list) and AUPRO, from one sort.

    Definitions: `auroc`, `average_precision`, `f1_max`, `aupro`; errors: `aupro`. Besides its input
    it holds one copy of the scores.

    >>> mask = np.array([[True, False], [False, False]])
    >>> found = pixel_metrics([mask], [np.array([[0.9, 0.2], [0.1, 0.3]])])
    >>> found.auroc, found.average_precision, found.f1_max, found.f1_threshold, found.aupro
    (1.0, 1.0, 1.0, 0.9, 1.0)
    """
    _check_limit(fpr_limit)
    ranking, overlap = _region_ranking(masks, maps)
    f1, threshold = ranking.f1_max()
    return PixelMetrics(
        auroc=ranking.auroc(),
        average_precision=ranking.average_precision(),
        f1_max=f1,
        f1_threshold=threshold,
        aupro=_area(ranking, overlap, fpr_limit),
    )


def aupro(
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.floating]],
    *,
    fpr_limit: float = 0.3,
) -> float:
    """Area under PRO against the false positive rate, up to `fpr_limit` and divided by it: 0..1.

    Bergmann et al. 2021 (The MVTec Anomaly Detection Dataset, IJCV 129). The rate counts the good
    pixels of all images, those of defective images too. The curve starts at (0, 0), visits every
    threshold and is joined by straight lines, also at the limit.

    Raises `ValueError` if the lists differ in length, a shape or dtype is wrong, a map is not
    finite or `fpr_limit` is not in (0, 1]; `UndefinedMetricError` if no pixel is defective or none
    is good.

    Two regions, one found whole, one missed; a quarter of the good pixels lights up first:

    >>> mask = np.array([[True, False, False, False, False, True]])
    >>> scores = np.array([[0.8, 0.9, 0.1, 0.1, 0.1, 0.0]])
    >>> round(aupro([mask], [scores], fpr_limit=0.5), 4)
    0.25
    """
    _check_limit(fpr_limit)
    ranking, overlap = _region_ranking(masks, maps)
    return _area(ranking, overlap, fpr_limit)


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be above 0 and at most 1; got {fpr_limit}")


def _region_ranking(
    masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]
) -> tuple[Ranking, NDArray[np.float64]]:
    """Rank all pixels; the array is the PRO at each threshold of the ranking, rising to 1."""
    good, defect, weight = _pooled(masks, maps)
    good.sort()
    order = np.argsort(defect)
    ranking = rank(defect[order], good)
    found = np.cumsum(weight[order[::-1]])
    return ranking, found[ranking.true_positives - 1] / found[-1]


def _pooled(
    masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.float64]]:
    """Scores of all good pixels, of all defect pixels, and 1 / region size of the latter."""
    n_pixels, n_defect = _checked_counts(masks, maps)
    # Filled in place: lists joined at the end would hold the scores of a whole class twice.
    dtype = np.result_type(*{scores.dtype for scores in maps})
    good = np.empty(n_pixels - n_defect, dtype=dtype)
    defect = np.empty(n_defect, dtype=dtype)
    weight = np.empty(n_defect, dtype=np.float64)
    good_end = defect_end = 0
    for mask, scores in zip(masks, maps, strict=True):
        outside = scores[~mask]
        good[good_end : good_end + outside.size] = outside
        good_end += outside.size
        inside = scores[mask]
        if inside.size:
            region = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)[0][mask]
            defect[defect_end : defect_end + inside.size] = inside
            weight[defect_end : defect_end + inside.size] = 1 / np.bincount(region)[region]
            defect_end += inside.size
    return good, defect, weight


def _checked_counts(
    masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]
) -> tuple[int, int]:
    """Check every mask and map; the number of pixels and of defect pixels."""
    if len(masks) != len(maps):
        raise ValueError(f"one mask per map; got {len(masks)} masks and {len(maps)} maps")
    n_pixels = n_defect = 0
    for at, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(
                f"masks must be boolean (H, W); masks[{at}] is {mask.dtype} of shape {mask.shape}: "
                "pass `mask > 0` or so"
            )
        if not np.issubdtype(scores.dtype, np.floating) or scores.shape != mask.shape:
            raise ValueError(
                f"maps must be floating point in the shape of their masks; maps[{at}] is "
                f"{scores.dtype} of shape {scores.shape}, its mask has shape {mask.shape}"
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"maps must be finite; maps[{at}] holds NaN or infinity")
        n_pixels += mask.size
        n_defect += int(np.count_nonzero(mask))
    if n_defect in (0, n_pixels):
        raise UndefinedMetricError(
            f"pixel metrics need defect pixels and good pixels; got {n_defect} defect and "
            f"{n_pixels - n_defect} good pixels in {len(masks)} masks: report them as undefined"
        )
    return n_pixels, n_defect


def _area(ranking: Ranking, overlap: NDArray[np.float64], fpr_limit: float) -> float:
    # Per threshold two points: past the good scores above it, flat; then over the ties at it.
    zero = np.zeros(1)
    right = np.column_stack((ranking.false_positives_above, ranking.false_positives)).ravel()
    rate = np.concatenate((zero, right / ranking.n_good, zero + 1))
    up = np.column_stack((np.concatenate((zero, overlap[:-1])), overlap)).ravel()
    height = np.concatenate((zero, up, zero + 1))
    end = int(np.searchsorted(rate, fpr_limit, side="right"))
    if end < rate.size:
        share = (fpr_limit - rate[end - 1]) / (rate[end] - rate[end - 1])
        at_limit = height[end - 1] + share * (height[end] - height[end - 1])
        rate = np.append(rate[:end], fpr_limit)
        height = np.append(height[:end], at_limit)
    return float(np.diff(rate) @ (height[1:] + height[:-1]) / (2 * fpr_limit))
