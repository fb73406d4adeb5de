"""P-values when the images that calibrate also fitted the statistics that score: leave-out rules.

Images are in K folds; image i is scored by the statistics of all folds but its own, and a new image
by each of the K statistics. Then

    p = (1 + #{i: score of i without its fold >= new score without that fold}) / (n + 1)

which is Vovk's cross-conformal p-value ("Cross-conformal predictors", 2015) and, with K = n, that
of jackknife+; the proof of Barber, Candes, Ramdas and Tibshirani ("Predictive inference with the
jackknife+", 2021, theorems 1 and 4) holds for any score that does not depend on the order of the
images. It gives P(p <= a) <= 2 a for K = n, not a; in practice it is near a.

**What it does not cover**: comparing the new image's score under the statistics of *all* n images
with the leave-one-out scores. That is the plain jackknife, of which no bound at all can be proved
without assuming that one image more or less hardly changes a score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.calibrate.conformal import finite_array
from mambaadv2.errors import ConfigError


def cross_p_values(
    calibration: ArrayLike, folds: ArrayLike, scores: ArrayLike
) -> NDArray[np.float64]:
    """One p-value for each new image, from scores by K leave-one-fold-out statistics.

    calibration: (n,) scores, each by the statistics without the image's fold. folds: (n,) whole
    numbers 0..K-1, the fold of each image, none empty. scores: (m, K), column k by the statistics
    without fold k. Returns (m,). Raises `ConfigError` for other shapes and values.

    >>> cross_p_values([1.0, 2.0], [0, 1], [[1.5, 1.5], [3.0, 1.9]]).tolist()
    [0.6666666666666666, 0.6666666666666666]
    """
    known, asked = finite_array("calibration", calibration), finite_array("scores", scores)
    which = np.asarray(folds)
    if known.ndim != 1 or not known.size:
        raise ConfigError(f"calibration: expected (n,) scores, n >= 1, got shape {known.shape}")
    if which.shape != known.shape or not np.issubdtype(which.dtype, np.integer):
        raise ConfigError(
            f"folds: expected {known.shape[0]} whole numbers, one for each calibration score, got "
            f"shape {which.shape} of {which.dtype}"
        )
    count = int(which.max()) + 1
    present = sorted(set(which.tolist()))
    if count < 2 or present != list(range(count)):
        raise ConfigError(f"folds: expected 0 to K - 1, K at least 2, none empty, got {present}")
    if asked.ndim != 2 or asked.shape[1] != count:
        raise ConfigError(
            f"scores: expected (m, {count}), a column for each fold, got shape {asked.shape}"
        )
    at_least = np.zeros(len(asked), dtype=np.int64)
    for fold in range(count):
        members = np.sort(known[which == fold])
        at_least += len(members) - np.searchsorted(members, asked[:, fold], side="left")
    found: NDArray[np.float64] = (1 + at_least) / (len(known) + 1)
    return found


def cross_guarantee(images: int, folds: int, rate: float) -> float:
    """What is proved of P(cross p-value <= rate) for a good image: at most this, and at most 1.

    images: n. folds: 2 <= K <= n, of equal size n / K. Barber et al. 2021, theorem 4; for K = n it
    is theorem 1, twice the rate.

    >>> cross_guarantee(32, 32, 0.05), round(cross_guarantee(100, 5, 0.05), 4)
    (0.1, 0.1762)
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate: expected a share between 0 and 1, got {rate}")
    if not 2 <= folds <= images:
        raise ConfigError(f"folds: expected 2 to {images}, the number of images, got {folds}")
    by_size = 2 * (1 - 1 / folds) / (images / folds + 1)
    by_folds = (1 - folds / images) / (folds + 1)
    return min(1.0, 2 * rate + min(by_size, by_folds))
