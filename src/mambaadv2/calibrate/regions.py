"""From a map to places: connected regions above a threshold, each with a p-value.

The statistic is an image's *peak*: the highest level at which its map still has a connected region
(8 neighbours) of a least area. A good image has a region above a threshold exactly when its peak is
above it, so the conformal threshold on the peaks of n good images keeps the share of good images
with *any* flagged region to the wished rate, with the guarantee of `conformal`; and a region's
p-value, that of its own peak among theirs, already counts that it may lie anywhere in the image.
With a least area of 1 pixel and no smoothing the peak is the maximum, as the image score is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.calibrate.conformal import conformal_threshold, p_values
from mambaadv2.errors import ConfigError

_EIGHT = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A connected region of a map above a threshold.

    area: pixels. box: (left, top, right, bottom) in pixels, the last two just outside. peak: the
    highest level at which it has the rule's least area; the maximum where that is 1 pixel.
    at: (x, y) of its highest pixel, of several the first by rows. p_value: share of good images
    that have such a peak anywhere, at most; None without calibration.
    """

    area: int
    box: tuple[int, int, int, int]
    peak: float
    at: tuple[int, int]
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRule:
    """How a map becomes regions; peaks and regions must come from the same rule and map size.

    min_area: pixels that a region has at least. sigma: of a Gaussian in pixels that the map is
    smoothed with first, 0 for none; a map of this package is smoothed already.
    """

    min_area: int = 1
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.min_area < 1:
            raise ConfigError(f"min_area: expected 1 pixel or more, got {self.min_area}")
        if not 0 <= self.sigma < math.inf:
            raise ConfigError(f"sigma: expected 0 or more pixels, got {self.sigma}")

    def smoothed(self, values: ArrayLike) -> NDArray[np.float64]:
        """The (H, W) map that regions are found in."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or not array.size or not np.isfinite(array).all():
            raise ConfigError(f"values: expected a finite (H, W) map, got shape {array.shape}")
        if self.min_area > array.size:
            raise ConfigError(
                f"min_area: expected at most the {array.size} pixels of the map, got "
                f"{self.min_area}"
            )
        if not self.sigma:
            return array
        from scipy import ndimage

        found: NDArray[np.float64] = ndimage.gaussian_filter(array, self.sigma, mode="nearest")
        return found

    def peak(self, values: ArrayLike) -> float:
        """Highest level at which an (H, W) map has a region of the least area at or above it."""
        return _peak(self.smoothed(values), self.min_area)


def map_threshold(peaks: Sequence[float], rate: float, *, confidence: float | None = None) -> float:
    """Threshold for maps: at most `rate` of good images have any region above it.

    peaks: of n held-out good images, each by the same `RegionRule` as the regions will be. Errors
    and `confidence` as of `conformal_threshold`.
    """
    return conformal_threshold(peaks, rate, confidence=confidence)


def regions(
    values: ArrayLike,
    threshold: float,
    *,
    rule: RegionRule | None = None,
    peaks: ArrayLike | None = None,
) -> list[Region]:
    """Connected regions (8 neighbours) of an (H, W) map above a threshold, highest peak first.

    rule: least area and smoothing, by default none. peaks: (n,) of held-out good images, by the
    same rule and at the same map size, for p-values. There is a region exactly when
    `rule.peak(values) > threshold`. Raises `ConfigError` for a map that is none.

    >>> spot = np.zeros((6, 8)); spot[1:3, 2:5] = 3.0; spot[2, 3] = 4.0
    >>> regions(spot, 1.0, peaks=[0.5, 0.7, 0.9])[0]
    Region(area=6, box=(2, 1, 5, 3), peak=4.0, at=(3, 2), p_value=0.25)
    """
    from scipy import ndimage

    rule = rule or RegionRule()
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold: expected a finite number, got {threshold}")
    smooth = rule.smoothed(values)
    labels, _ = ndimage.label(smooth > threshold, structure=_EIGHT)
    areas = np.bincount(labels.ravel())
    found: list[Region] = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if areas[label] < rule.min_area:
            continue
        rows, columns = box
        inside = np.where(labels[box] == label, smooth[box], -np.inf)
        peak = float(inside.max()) if rule.min_area == 1 else _peak(inside, rule.min_area)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        found.append(
            Region(
                area=int(areas[label]),
                box=(columns.start, rows.start, columns.stop, rows.stop),
                peak=peak,
                at=(int(x) + columns.start, int(y) + rows.start),
                p_value=None if peaks is None else float(p_values(peaks, peak)),
            )
        )
    return sorted(found, key=lambda region: -region.peak)


def _peak(values: NDArray[np.float64], min_area: int) -> float:
    """Largest v with a component of {values >= v} of at least `min_area` pixels, by bisection."""
    from scipy import ndimage

    if min_area == 1:
        return float(values.max())
    levels = np.unique(values[np.isfinite(values)])

    def large_enough(level: float) -> bool:
        labels, count = ndimage.label(values >= level, structure=_EIGHT)
        return count > 0 and int(np.bincount(labels.ravel())[1:].max()) >= min_area

    # At the lowest level all is one region, and regions only grow as the level falls.
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if large_enough(float(levels[middle])):
            low = middle
        else:
            high = middle - 1
    return float(levels[low])
