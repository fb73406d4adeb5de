"""A batch at once: which images to look at, so that few of those are good after all.

A rate of false alarms says how many *good* images are flagged; the false-discovery rate says how
many of the *flagged* images are good, which is what the person feels who looks at them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.errors import ConfigError


def discoveries(p_values: ArrayLike, share: float = 0.1) -> NDArray[np.bool_]:
    """Which images of a batch to flag, with at most `share` good ones among the flagged expected.

    p_values: (m,) conformal p-values of the batch. share: wished false-discovery rate, in (0, 1).
    Benjamini and Hochberg (1995): flag the k smallest, with the largest k for which the k-th
    smallest is at most share x k / m. Conformal p-values of one calibration set depend on each
    other, in a way that does not hurt: the rate is still at most share x (part of good images in
    the batch) (Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal
    p-values", 2023, theorem 2, for images that are independent of each other and have no ties).
    Several classes, each with its own calibration, are covered; pooled p-values are not.

    With n calibration images a p-value is at least 1 / (n + 1): where fewer than
    m / (share (n + 1)) images of the batch are defects, nothing can be flagged.

    >>> discoveries([0.01, 0.5, 0.02, 0.9], 0.1).tolist()
    [True, False, True, False]
    """
    if not 0 < share < 1:
        raise ConfigError(f"share: expected a share between 0 and 1, got {share}")
    return within(adjusted_p_values(p_values), share)


def within(adjusted: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Which of `adjusted_p_values` a share reaches; equal ones are, whatever rounding says.

    Many equal p-values of 1 / (n + 1) with a share of just that is how a lot of defects looks.

    >>> within(adjusted_p_values([0.1, 0.1, 0.1]), 0.1).tolist()
    [True, True, True]
    """
    reached: NDArray[np.bool_] = np.asarray(adjusted) <= share * (1 + 1e-12)
    return reached


def adjusted_p_values(p_values: ArrayLike) -> NDArray[np.float64]:
    """(m,) smallest false-discovery rate at which `discoveries` flags each image.

    >>> adjusted_p_values([0.01, 0.5, 0.02, 0.9]).tolist()
    [0.04, 0.6666666666666666, 0.04, 0.9]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ConfigError(f"p_values: expected (m,) numbers from 0 to 1, got shape {p.shape}")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(adjusted, 1.0)
