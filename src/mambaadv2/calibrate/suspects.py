"""Good images that may be none: scores far above the rest of their class.

A defect among the held-out good images raises the threshold, so that others like it are missed; it
does not cause false alarms. Leaving it out mends that, at a price that `ClassCalibration` states:
had the image been good, more good images than wished are flagged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mambaadv2.errors import ConfigError

LIMIT = 6.0  # robust standard deviations of the logarithm; see `suspects`
SHARE = 0.05
FEWEST = 20  # images: with fewer the spread is too uncertain to call one an outlier


def suspects(
    scores: Sequence[float], *, limit: float = LIMIT, share: float = SHARE
) -> tuple[int, ...]:
    """Positions of the images that look mislabelled, highest score first.

    scores: of a class's good images, >= 0. Rule (our choice): the logarithm of the score lies more
    than `limit` robust standard deviations (1.4826 x the median absolute deviation) above the
    median, for at most floor(`share` x n) images, those that are highest; none of fewer than
    `FEWEST`. At the limit of 6 a class of normal or log-normal scores without any defect loses an
    image in well under 1 % of all cases; one whose good scores have heavy tails (Student's t with
    3 degrees of freedom) loses some more often, which is why the price is stated and the pictures
    are to be looked at.

    >>> suspects([1.0, 1.1, 0.9, 1.05] * 5 + [4.0])
    (20,)
    """
    if not (0 < share < 0.5 and limit > 0):
        raise ConfigError(
            f"share and limit: expected a share in (0, 0.5) and a limit above 0, got {share}, "
            f"{limit}"
        )
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ConfigError("scores: expected a list of finite scores >= 0")
    if len(array) < FEWEST or np.median(array) == 0:
        return ()
    with np.errstate(divide="ignore"):
        logs = np.log(array)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if not 0 < spread < np.inf:  # half of the scores are equal: nothing to measure by
        return ()
    far = np.flatnonzero(logs > middle + limit * spread)
    order = far[np.argsort(-array[far], kind="stable")]
    return tuple(int(i) for i in order[: int(share * len(array))])
