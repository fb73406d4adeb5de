"""What a normal score is: thresholds and the colour scale, from held-out normal images only.

Rule (our choice): the scores of a class's normal images, divided by their mean, are taken as
roughly normal, so the threshold is the upper end of the prediction interval for one new image at a
nominal false-alarm rate, mean x (1 + t s sqrt(1 + 1/n)), with Student's t. With few images s leans
on the spread pooled over the other classes. It says nothing about defects and never sees one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambaadv2.errors import ConfigError

FALSE_ALARM_RATE = 0.01
PRIOR_IMAGES = 8.0  # the pooled spread weighs as much as this many images of the class
LONE_SPREAD = 0.05  # of relative scores, where no class has two images
FULL_SCALE = 2.0  # the colour scale ends at twice the threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCalibration:
    """Threshold of one class, in raw score units, and the number of images behind it."""

    threshold: float
    images: int


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


def calibrate_classes(
    scores: Mapping[str, Sequence[float]], *, rate: float = FALSE_ALARM_RATE
) -> dict[str, ClassCalibration]:
    """Threshold per class from the raw image scores of held-out normal images.

    scores: class name to scores, >= 0, at least one each and not all 0. rate: wished share of
    flagged good images. Raises `ConfigError` for other scores and for a bad rate.
    """
    from scipy import stats

    if not 0 < rate < 0.5:
        raise ConfigError(f"rate: expected a false-alarm rate between 0 and 0.5, got {rate}")
    relative: dict[str, NDArray[np.float64]] = {}
    for name, sample in scores.items():
        array = np.asarray(sample, dtype=np.float64)
        if not (array.size and np.all(np.isfinite(array)) and np.all(array >= 0) and array.any()):
            raise ConfigError(
                f"calibration of class {name!r}: expected finite scores >= 0, not all 0, "
                f"of at least one held-out normal image, got {list(sample)[:5]}"
            )
        relative[name] = array / array.mean()
    squares = {name: float(((v - 1) ** 2).sum()) for name, v in relative.items()}
    freedom = sum(len(v) - 1 for v in relative.values())
    calibrated: dict[str, ClassCalibration] = {}
    for name, values in relative.items():
        n = len(values)
        # The other classes only: a class counted in its own prior would seem twice as certain.
        others = freedom - (n - 1)
        prior = min(PRIOR_IMAGES, float(others))
        pooled = (sum(squares.values()) - squares[name]) / others if others else 0.0
        if n - 1 + prior == 0:  # one image in all
            prior, pooled = PRIOR_IMAGES, LONE_SPREAD**2
        variance = (squares[name] + prior * pooled) / (n - 1 + prior)
        t = float(stats.t.ppf(1 - rate, df=n - 1 + prior))
        upper = 1 + t * math.sqrt(max(0.0, variance) * (1 + 1 / n))
        mean = float(np.mean(np.asarray(scores[name], dtype=np.float64)))
        calibrated[name] = ClassCalibration(threshold=mean * upper, images=n)
    return calibrated


def colour_scale(relative: Sequence[NDArray[np.float32]]) -> ColourScale:
    """Colour scale from maps of held-out normal images, each divided by its class's threshold."""
    if not relative:
        raise ConfigError("colour scale: expected at least one map of a held-out normal image")
    low = float(np.mean([np.quantile(values, 0.99) for values in relative]))
    return ColourScale(low=min(low, 0.95), high=FULL_SCALE)
