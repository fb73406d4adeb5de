"""Split-conformal p-values and thresholds: what good scores alone can guarantee, and from how many.

The one assumption: the scores of n held-out good images and of the next good image are
*exchangeable* (no order among them is more likely than another; independent images taken in the
same way are). Then the next image is as likely to have the highest score of all n + 1 as any other,
whatever the distribution, and a rule "flag above the m-th largest of the n" flags a good image with
a chance of at most m / (n + 1). That is an average over calibration sets. Given one calibration
set, the chance is distributed as Beta(m, n + 1 - m) for scores without ties, and is smaller with
ties. Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005); Vovk,
"Conditional validity of inductive conformal predictors" (2012), for what holds given one set;
Wilks, "Determination of sample sizes for setting tolerance limits" (1941).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambaadv2.errors import ConfigError

LEVEL = 0.9  # of intervals that are shown beside a rate


def p_values(
    calibration: ArrayLike, scores: ArrayLike, *, uniform: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Chance that a good image scores this high or higher, at most: one p-value for each score.

    calibration: (n,) scores of held-out good images, n >= 1, higher is worse. scores: any shape.
    p = (1 + #{calibration >= score}) / (n + 1), between 1 / (n + 1) and 1; for a good image
    P(p <= a) <= a for every a.

    uniform: numbers in [0, 1] of the shape of `scores`, drawn by the caller. With them p is
    smoothed, (#{calibration > score} + u (1 + #{calibration = score})) / (n + 1), and exactly
    uniform for a good image, ties or not.

    Raises `ConfigError` for scores that are not finite and for numbers outside [0, 1].

    >>> p_values([1.0, 2.0, 3.0], [0.5, 2.0, 9.0]).tolist()
    [1.0, 0.75, 0.25]
    """
    known, asked = sorted_scores("calibration", calibration), finite_array("scores", scores)
    n = len(known)
    at_least = n - np.searchsorted(known, asked, side="left")
    if uniform is None:
        plain: NDArray[np.float64] = (1 + at_least) / (n + 1)
        return plain
    u = np.asarray(uniform, dtype=np.float64)
    if u.shape != asked.shape or not np.all((u >= 0) & (u <= 1)):
        raise ConfigError(
            f"uniform: expected numbers in [0, 1] of the shape {asked.shape} of the scores, "
            f"got shape {u.shape}"
        )
    above = n - np.searchsorted(known, asked, side="right")
    smoothed: NDArray[np.float64] = (above + u * (1 + at_least - above)) / (n + 1)
    return smoothed


def largest_rank(images: int, rate: float, *, confidence: float | None = None) -> int:
    """The m for which "flag above the m-th largest of n good scores" keeps to a rate; 0: none does.

    images: n >= 0. rate: wished share of flagged good images, in (0, 1).
    confidence: None for the average over calibration sets, m = floor((n + 1) rate); otherwise the
    share of calibration sets, in (0, 1), for which the rate itself must hold (a one-sided tolerance
    limit: the largest m with P(Beta(m, n + 1 - m) <= rate) >= confidence).

    >>> largest_rank(98, 0.01), largest_rank(99, 0.01), largest_rank(199, 0.01)
    (0, 1, 2)
    >>> largest_rank(298, 0.01, confidence=0.95), largest_rank(299, 0.01, confidence=0.95)
    (0, 1)
    """
    from scipy import stats

    _require_rate("rate", rate)
    if images < 0:
        raise ConfigError(f"images: expected 0 or more, got {images}")
    # As it is written: 100 * 0.07 is 7 and not 7.000000000000001.
    average = math.floor(Fraction(str(float(rate))) * (images + 1))
    if confidence is None:
        return average
    _require_rate("confidence", confidence)
    low, high = 0, images  # the condition holds at `low` and falls with m
    while low < high:
        middle = (low + high + 1) // 2
        if float(stats.beta.cdf(rate, middle, images + 1 - middle)) >= confidence:
            low = middle
        else:
            high = middle - 1
    return low


def conformal_threshold(
    calibration: ArrayLike, rate: float, *, confidence: float | None = None
) -> float:
    """The lowest of the good scores above which at most `rate` of good images will lie.

    Flag what is above it, not what equals it: this is the same as p <= rate. Arguments as in
    `largest_rank`. It is the ceil((n + 1)(1 - rate))-th smallest of the n scores. Raises
    `ConfigError` with the number of images that it takes when there are too few.

    >>> conformal_threshold(range(1, 100), 0.05)
    95.0
    """
    known = sorted_scores("calibration", calibration)
    lack = shortage(len(known), rate, confidence=confidence)
    if lack is not None:
        raise ConfigError(f"rate: {lack}")
    return float(known[-largest_rank(len(known), rate, confidence=confidence)])


def at_most(share: float) -> str:
    """A bound in percent with two digits, never below it.

    >>> at_most(0.03448), at_most(0.01), at_most(2 / 200)
    ('3.5 %', '1 %', '1 %')
    """
    digits = 1 - math.floor(math.log10(100 * share))
    return f"{math.ceil(100 * share * 10**digits - 1e-9) / 10**digits:g} %"


def needed_images(rate: float, *, confidence: float | None = None) -> int:
    """The smallest number of held-out good images that can guarantee a false-alarm rate.

    >>> needed_images(0.01), needed_images(0.01, confidence=0.95)
    (99, 299)
    """
    _require_rate("rate", rate)
    if confidence is None:
        return math.ceil(1 / Fraction(str(float(rate)))) - 1
    _require_rate("confidence", confidence)
    count = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-rate)) - 2)
    while not largest_rank(count, rate, confidence=confidence):
        count += 1
    return count


def shortage(images: int, rate: float, *, confidence: float | None = None) -> str | None:
    """A sentence when so many images cannot guarantee the rate, else None.

    >>> shortage(32, 0.01)
    '1 % needs at least 99 held-out good images, you have 32'
    """
    if largest_rank(images, rate, confidence=confidence):
        return None
    needed = needed_images(rate, confidence=confidence)
    sure = "" if confidence is None else f" with {100 * confidence:g} % confidence"
    return f"{100 * rate:g} %{sure} needs at least {needed} held-out good images, you have {images}"


def false_alarm_range(images: int, rank: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Between which false-alarm rates the threshold at a rank lies, for `level` of all sets.

    The share of good images above the `rank`-th largest of `images` good scores is distributed as
    Beta(rank, images + 1 - rank) over calibration sets; its central interval is returned. With
    ties the true rate may be lower than the interval, never higher more often.

    >>> [round(end, 4) for end in false_alarm_range(99, 1)]
    [0.0005, 0.0298]
    """
    from scipy import stats

    _require_rate("level", level)
    if not 1 <= rank <= images:
        raise ConfigError(f"rank: expected 1 to {images}, the number of images, got {rank}")
    tail = (1 - level) / 2
    low, high = stats.beta.ppf([tail, 1 - tail], rank, images + 1 - rank)
    return float(low), float(high)


def false_alarm_bound(images: int, rank: int, *, confidence: float = LEVEL) -> float:
    """The false-alarm rate that the threshold at a rank keeps to, for `confidence` of all sets.

    The one-sided twin of `false_alarm_range`; it holds with ties too.

    >>> round(false_alarm_bound(299, 1, confidence=0.95), 4)
    0.01
    """
    from scipy import stats

    _require_rate("confidence", confidence)
    if not 1 <= rank <= images:
        raise ConfigError(f"rank: expected 1 to {images}, the number of images, got {rank}")
    return float(stats.beta.ppf(confidence, rank, images + 1 - rank))


def sorted_scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """(n,) finite scores in rising order; `ConfigError` naming them for anything else."""
    array = finite_array(name, scores)
    if array.ndim != 1 or not array.size:
        raise ConfigError(f"{name}: expected a list of at least one score, got shape {array.shape}")
    return np.sort(array)


def finite_array(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """Scores as float64; `ConfigError` naming them where one is no finite number."""
    try:
        array = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: expected numbers ({error})") from error
    if not np.isfinite(array).all():
        raise ConfigError(f"{name}: expected finite scores, found NaN or infinity")
    return array


def _require_rate(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{name}: expected a share between 0 and 1, got {value}")
