"""A threshold for a rate that the images are too few to guarantee, from an assumption.

Rule (our choice): the scores of a class's normal images, divided by their mean, are taken as
roughly normal, so the limit is the upper end of the prediction interval for one new image at a
nominal false-alarm rate, mean x (1 + t s sqrt(1 + 1/n)), with Student's t. With few images s leans
on the spread pooled over the other classes. It says nothing about defects and never sees one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mambaadv2.errors import ConfigError

PRIOR_IMAGES = 8.0  # the pooled spread weighs as much as this many images of the class
LONE_SPREAD = 0.05  # of relative scores, where no class has two images


def assumed_limits(scores: Mapping[str, Sequence[float]], rate: float) -> dict[str, float]:
    """Upper prediction limit per class, raw score units, *if* relative scores are roughly normal.

    scores: class name to raw scores of held-out normal images, >= 0, at least one each and not all
    0. rate: wished share of flagged good images, in (0, 0.5). Raises `ConfigError` for others.
    """
    from scipy import stats

    if not 0 < rate < 0.5:
        raise ConfigError(f"rate: expected a false-alarm rate between 0 and 0.5, got {rate}")
    means: dict[str, float] = {}
    relative: dict[str, NDArray[np.float64]] = {}
    for name, sample in scores.items():
        array = np.asarray(sample, dtype=np.float64)
        if not (array.size and np.all(np.isfinite(array)) and np.all(array >= 0) and array.any()):
            raise ConfigError(
                f"calibration of class {name!r}: expected finite scores >= 0, not all 0, "
                f"of at least one held-out normal image, got {list(sample)[:5]}"
            )
        means[name] = float(array.mean())
        relative[name] = array / array.mean()
    squares = {name: float(((v - 1) ** 2).sum()) for name, v in relative.items()}
    freedom = sum(len(v) - 1 for v in relative.values())
    limits: dict[str, float] = {}
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
        limits[name] = means[name] * upper
    return limits
