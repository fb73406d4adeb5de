"""Pixel metrics of a set of anomaly maps, among them AUPRO, which counts all defect regions alike.

`masks` are boolean (H, W), True where a pixel is defective; `maps` are float (H, W) in any unit,
higher is more anomalous. Each map has its mask's size; the images may differ in size. Images
without a defect belong in both lists with an all-false mask.

Per-region overlap (PRO) at a threshold is the share of a region's pixels at or above it, averaged
over all regions of all images; a region is a connected component of the mask with 8 neighbours. So
a pixel of a region of n pixels adds 1 / (n x number of regions) once the threshold reaches it, and
from there to the right edge of the curve it adds to the area, however the other pixels are scored:
the area is a plain sum over the defect pixels, and needs only the good pixels sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics.curve import Curve, reach
from mambaadv2.metrics.ranking import BLOCK, iou_of_f1, ranking_metrics

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


FPR_LIMIT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelMetrics:
    """The four pixel metrics, each 0..1; the threshold of the best F1, in the unit of the maps."""

    auroc: float
    average_precision: float
    f1_max: float
    f1_threshold: float
    aupro: float
    roc: Curve = field(repr=False)
    """As in `RankingMetrics`, over all pixels as one list."""
    precision_recall: Curve = field(repr=False)

    @property
    def iou_max(self) -> float:
        """mIoU-max before its mean over classes, 0..1: the best IoU of the defect pixels."""
        return iou_of_f1(self.f1_max)


class PixelPool:
    """The scores of all pixels of a class, gathered image by image so that no map need be kept.

    n_pixels: of all images that will be added. n_marked: of those among them whose mask is not
    empty; defect pixels cannot be more. dtype: of the scores; maps of another dtype are refused.

    >>> pool = PixelPool(4, 4, np.dtype(np.float64))
    >>> pool.add(np.array([[True, False], [False, False]]), np.array([[0.9, 0.2], [0.1, 0.3]]))
    >>> pool.metrics().aupro
    1.0
    """

    def __init__(self, n_pixels: int, n_marked: int, dtype: np.dtype[np.floating]) -> None:
        # Good pixels fill the front, defects the back. What is never filled never becomes memory.
        self._scores: NDArray[np.floating] = np.empty(n_pixels, dtype=dtype)
        self._sizes = np.empty(n_marked, dtype=np.int32)  # of each defect pixel's region
        self._n_good = self._n_defect = self._n_regions = self._added = 0

    def add(self, mask: NDArray[np.bool_], scores: NDArray[np.floating]) -> None:
        """Take in one image: mask (H, W), all False where it is good, and map (H, W).

        Raises `ValueError` for wrong shapes and dtypes and for a map that is not finite.
        """
        check_image(self._added, mask, scores)
        if scores.dtype != self._scores.dtype:
            raise ValueError(
                f"maps must be {self._scores.dtype}; maps[{self._added}] is {scores.dtype}"
            )
        self._added += 1
        inside = scores[mask]
        if inside.size:
            region = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)[0][mask]
            counts = np.bincount(region)
            first = self._scores.size - self._n_defect
            self._scores[first - inside.size : first] = inside[::-1]
            self._sizes[self._n_defect : self._n_defect + inside.size] = counts[region]
            self._n_defect += inside.size
            self._n_regions += counts.size - 1
        outside = scores[~mask]
        self._scores[self._n_good : self._n_good + outside.size] = outside
        self._n_good += outside.size

    def metrics(self, *, fpr_limit: float = FPR_LIMIT) -> PixelMetrics:
        """See `pixel_metrics`. Sorts in place, so this can be asked once.

        Raises `UndefinedMetricError` if no pixel is defective or none is good.
        """
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must be above 0 and at most 1; got {fpr_limit}")
        if not self._n_good or not self._n_defect:
            raise UndefinedMetricError(
                f"pixel metrics need defect pixels and good pixels; got {self._n_defect} defect "
                f"and {self._n_good} good pixels in {self._added} masks: report them as undefined"
            )
        good = self._scores[: self._n_good]
        defect = self._scores[self._scores.size - self._n_defect :][::-1]
        good.sort()
        area = self._area(good, defect, fpr_limit)
        self._sizes = np.empty(0, dtype=np.int32)
        ascending = defect[::-1]
        ascending.sort()
        found = ranking_metrics(ascending, good)
        return PixelMetrics(
            auroc=found.auroc,
            average_precision=found.average_precision,
            f1_max=found.f1_max,
            f1_threshold=found.f1_threshold,
            aupro=area,
            roc=found.roc,
            precision_recall=found.precision_recall,
        )

    def _area(
        self, good: NDArray[np.floating], defect: NDArray[np.floating], limit: float
    ) -> float:
        """AUPRO; `good` is sorted, `defect` is in the order of `_sizes`."""
        total = 0.0
        for start in range(0, defect.size, BLOCK):
            scores = defect[start : start + BLOCK]
            order = np.argsort(scores)  # sorted needles keep the searches within the cache
            below = np.empty(scores.size, dtype=np.int64)
            not_above = np.empty(scores.size, dtype=np.int64)
            below[order] = np.searchsorted(good, scores[order], side="left")
            not_above[order] = np.searchsorted(good, scores[order], side="right")
            left = (good.size - not_above) / good.size
            right = (good.size - below) / good.size
            total += float(reach(left, right, limit) @ (1 / self._sizes_at(start)))
        return total / (self._n_regions * limit)

    def _sizes_at(self, start: int) -> NDArray[np.int32]:
        return self._sizes[start : min(start + BLOCK, self._n_defect)]


def pixel_metrics(
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.floating]],
    *,
    fpr_limit: float = FPR_LIMIT,
) -> PixelMetrics:
    """AUROC, average precision, best F1 (over all pixels as one list) and AUPRO, from one sort.

    Definitions: `auroc`, `average_precision`, `f1_max`, `aupro`; errors: `aupro`. Besides its input
    it holds one copy of the scores.

    >>> mask = np.array([[True, False], [False, False]])
    >>> found = pixel_metrics([mask], [np.array([[0.9, 0.2], [0.1, 0.3]])])
    >>> found.auroc, found.average_precision, found.f1_max, found.f1_threshold, found.aupro
    (1.0, 1.0, 1.0, 0.9, 1.0)
    """
    return pooled(masks, maps).metrics(fpr_limit=fpr_limit)


def aupro(
    masks: Sequence[NDArray[np.bool_]],
    maps: Sequence[NDArray[np.floating]],
    *,
    fpr_limit: float = FPR_LIMIT,
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
    return pixel_metrics(masks, maps, fpr_limit=fpr_limit).aupro


def pooled(masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]) -> PixelPool:
    """A pool of images that are at hand; errors as in `aupro`."""
    if len(masks) != len(maps):
        raise ValueError(f"one mask per map; got {len(masks)} masks and {len(maps)} maps")
    for at, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        check_image(at, mask, scores)
    marked = sum(mask.size for mask in masks if mask.any())
    dtype = np.result_type(np.float32, *{scores.dtype for scores in maps})
    pool = PixelPool(sum(mask.size for mask in masks), marked, dtype)
    for mask, scores in zip(masks, maps, strict=True):
        pool.add(mask, scores.astype(dtype, copy=False))
    return pool


def check_image(at: int, mask: NDArray[np.bool_], scores: NDArray[np.floating]) -> None:
    """Raise `ValueError` unless mask and map fit together; `at` is the image's number."""
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
