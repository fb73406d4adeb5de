"""One p-value from the held-out images of all classes, where each class alone has too few.

Scores are divided by the mean of their class, the new image counted in its own class's mean, so
that the calibration images and the new one are treated alike and no statistic is fitted on some of
them only (full conformal; Vovk, Gammerman and Shafer 2005, section 2.2).

**Valid when** the classes of the held-out images were drawn as those of the new image are, by the
same chance each: then P(p <= a) <= a over all images together, for any distributions. With a fixed
number held out of each class it holds nearly, the better the more there are; not with one or two.
**For one class alone** it holds nearly, when scores divided by their class's mean are distributed
alike in all classes, and not otherwise: a class whose scores scatter more than the others' has more
false alarms than the rate, and the others have fewer. A class's own p-value (`p_values`) has no
such gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mambaadv2.calibrate.conformal import sorted_scores
from mambaadv2.errors import ConfigError


def pooled_p_value(calibration: Mapping[str, Sequence[float]], name: str, score: float) -> float:
    """P-value of a score of class `name` among the held-out images of all classes.

    calibration: class name to raw scores of held-out good images, >= 0, at least one each and not
    all 0. Between 1 / (N + 1) and 1 for N images in all. It falls as the score rises. Raises
    `ConfigError` for an unknown class and scores that are none.

    >>> pooled_p_value({"a": [1.0, 1.2], "b": [10.0, 12.0, 11.0]}, "b", 33.0)
    0.16666666666666666
    """
    classes = _checked(calibration)
    if name not in classes:
        raise ConfigError(f"name: expected one of the classes {sorted(classes)}, got {name!r}")
    if not 0 <= score < np.inf:
        raise ConfigError(f"score: expected a finite number >= 0, got {score}")
    own = classes[name]
    relative = score / ((own.sum() + score) / (len(own) + 1))
    above = int((own >= score).sum())
    above += sum(int((v / v.mean() >= relative).sum()) for n, v in classes.items() if n != name)
    return (1 + above) / (1 + sum(map(len, classes.values())))


def pooled_threshold(calibration: Mapping[str, Sequence[float]], name: str, rate: float) -> float:
    """The score of class `name` above which the pooled p-value is at most `rate`; inf if never.

    Never, when all classes together have too few images (`needed_images`), and when the class has
    so few that a score divided by a mean which contains it cannot stand out among the others.
    Raises `ConfigError` as `pooled_p_value` does, and for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate: expected a share between 0 and 1, got {rate}")
    classes = _checked(calibration)
    if name not in classes:
        raise ConfigError(f"name: expected one of the classes {sorted(classes)}, got {name!r}")
    own = classes[name]
    count = len(own) + 1
    others = [v / v.mean() for n, v in classes.items() if n != name]
    relative = np.concatenate(others) if others else np.empty(0)
    # score count / (sum + score) reaches r at score = r sum / (count - r), and never r >= count.
    turning = relative[relative < count]
    turning = turning * own.sum() / (count - turning)
    # p only changes at these scores, and a hair above each of them.
    candidates = np.unique(np.concatenate([own, turning]))
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        above = float(np.nextafter(candidates[middle] * (1 + 1e-12), np.inf))
        if pooled_p_value(calibration, name, above) <= rate:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low] * (1 + 1e-12)) if low < len(candidates) else float("inf")


def _checked(calibration: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    classes = {n: sorted_scores(f"calibration of class {n!r}", v) for n, v in calibration.items()}
    for name, values in classes.items():
        if values[0] < 0 or values[-1] == 0:
            raise ConfigError(
                f"calibration of class {name!r}: expected scores >= 0, not all 0, "
                f"got {values[:5].tolist()}"
            )
    return classes
