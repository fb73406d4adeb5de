"""The colour scale of heat maps, and which p-values its colours stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.calibrate.conformal import sorted_scores
from mambaadv2.errors import ConfigError

FULL_SCALE = 2.0  # the colour scale ends at twice the threshold
MARKS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourScale:
    """Range of map / threshold that heat maps show; 1 is the threshold.

    low: below it nothing is drawn; 99 % of the pixels of held-out normal images lie there.
    high: the hottest colour.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < math.inf:
            raise ConfigError(
                f"colour scale: expected 0 <= low < high, got {self.low}, {self.high}"
            )


def colour_scale(relative: Sequence[NDArray[np.float32]]) -> ColourScale:
    """Colour scale from maps of held-out normal images, each divided by its class's threshold."""
    if not relative:
        raise ConfigError("colour scale: expected at least one map of a held-out normal image")
    low = float(np.mean([np.quantile(values, 0.99) for values in relative]))
    return ColourScale(low=min(low, 0.95), high=FULL_SCALE)


def colour_marks(peaks: ArrayLike, threshold: float) -> list[tuple[float, float]]:
    """Where a heat map's legend may say a p-value: (map / threshold, p), p falling.

    peaks: (n,) map maxima of held-out normal images of one class, which are their image scores.
    A place where the map is above `map / threshold` is in at most a share p of all good images,
    wherever in the image. Marks are round p-values (`MARKS`) down to 1 / (n + 1), the smallest that
    n images can tell. p is that of the class, so a shared colour scale has marks for each class.

    >>> colour_marks([1.0, 2.0, 3.0, 4.0], 4.0)
    [(0.75, 0.4), (1.0, 0.2)]
    """
    known = sorted_scores("peaks", peaks)
    if not 0 < threshold < math.inf:
        raise ConfigError(f"threshold: expected a number above 0, got {threshold}")
    n = len(known)
    # The rank that a mark allows; several marks of few images may be one rank.
    ranks = dict.fromkeys(rank for mark in MARKS if (rank := int(mark * (n + 1) + 1e-9)) >= 1)
    return [(float(known[-rank]) / threshold, rank / (n + 1)) for rank in ranks]
