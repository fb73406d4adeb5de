"""p-values and thresholds against brute force, and their guarantees by simulation.

Simulations are seeded and judged by exact binomial bounds that a right program would leave once in
a million seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mambaadv2.calibrate import (
    conformal_threshold,
    false_alarm_bound,
    false_alarm_range,
    largest_rank,
    needed_images,
    p_values,
    shortage,
)
from mambaadv2.errors import ConfigError

Array = NDArray[np.float64]
RARE = 1e-6

scores = st.integers(0, 12).map(float)  # ties on purpose
rates = st.integers(1, 999).map(lambda k: k / 1000)


@given(st.lists(scores, min_size=1, max_size=40), st.lists(scores, min_size=1, max_size=5))
def test_p_values_count(calibration: list[float], asked: list[float]) -> None:
    found = p_values(calibration, asked)
    for p, score in zip(found, asked, strict=True):
        assert p == (1 + sum(c >= score for c in calibration)) / (len(calibration) + 1)


@given(st.lists(scores, min_size=1, max_size=40), scores, st.floats(0, 1))
def test_smoothed_p_values_count(calibration: list[float], score: float, u: float) -> None:
    above = sum(c > score for c in calibration)
    equal = 1 + sum(c == score for c in calibration)
    expected = (above + u * equal) / (len(calibration) + 1)
    assert p_values(calibration, score, uniform=u) == pytest.approx(expected)
    assert p_values(calibration, score, uniform=1.0) == pytest.approx(p_values(calibration, score))


@given(st.lists(scores, min_size=1, max_size=60), rates, scores)
def test_above_the_threshold_is_a_p_value_within_the_rate(
    calibration: list[float], rate: float, score: float
) -> None:
    if shortage(len(calibration), rate):
        with pytest.raises(ConfigError, match=r"needs at least \d+ held-out good images, you have"):
            conformal_threshold(calibration, rate)
        assert p_values(calibration, math.nextafter(max(calibration), math.inf)) > rate
    else:
        threshold = conformal_threshold(calibration, rate)
        assert (score > threshold) == (p_values(calibration, score) <= rate)


@given(st.integers(1, 400), rates)
def test_the_rank_is_the_textbook_one(images: int, rate: float) -> None:
    rank = largest_rank(images, rate)
    thousandths = round(rate * 1000)
    assert rank == (images + 1) * thousandths // 1000
    assert images + 1 - rank == -(-(images + 1) * (1000 - thousandths) // 1000)  # ceil


@given(st.integers(0, 200), rates, st.sampled_from([0.5, 0.9, 0.99]))
def test_the_rank_with_confidence_is_the_largest_allowed(
    images: int, rate: float, confidence: float
) -> None:
    def sure(rank: int) -> float:
        # P(Beta(m, n + 1 - m) <= a) = P(Binomial(n, a) >= m)
        return float(stats.binom.sf(rank - 1, images, rate))

    rank = largest_rank(images, rate, confidence=confidence)
    assert rank == 0 or sure(rank) >= confidence - 1e-9
    assert rank == images or sure(rank + 1) < confidence + 1e-9


@given(rates, st.sampled_from([None, 0.5, 0.95]))
def test_needed_images_are_enough_and_not_one_more(rate: float, confidence: float | None) -> None:
    needed = needed_images(rate, confidence=confidence)
    assert largest_rank(needed, rate, confidence=confidence) >= 1
    assert needed == 0 or largest_rank(needed - 1, rate, confidence=confidence) == 0


def test_numbers_of_the_tables() -> None:
    # Wilks' 59 and 299 for the maximum as a 95 % tolerance limit.
    assert [needed_images(a, confidence=0.95) for a in (0.05, 0.01)] == [59, 299]
    assert needed_images(0.05) == 19
    assert shortage(99, 0.01) is None
    wanted = "1 % with 95 % confidence needs at least 299 held-out good images, you have 99"
    assert shortage(99, 0.01, confidence=0.95) == wanted


DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.normal(3, 0.3, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, shape),
    "skewed": lambda rng, shape: rng.lognormal(0, 1, shape),
    "ties": lambda rng, shape: rng.poisson(2.0, shape).astype(np.float64),
}
CASES = [
    (images, rate)
    for images in (20, 32, 99, 150, 500, 2000)
    for rate in (0.1, 0.05, 0.01)
    if (images + 1) * rate >= 1
]


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("images, rate", CASES)
def test_false_alarms_keep_to_the_rate(name: str, images: int, rate: float) -> None:
    repeats = 4000 if images < 1000 else 2000
    rng = np.random.default_rng(images)
    drawn = DRAWS[name](rng, (repeats, images + 1))
    rank = largest_rank(images, rate)
    thresholds = np.sort(drawn[:, 1:], axis=1)[:, -rank]
    assert thresholds[0] == conformal_threshold(drawn[0, 1:], rate)
    # One new image for each calibration set: independent trials.
    alarms = int((drawn[:, 0] > thresholds).sum())
    assert alarms <= stats.binom.ppf(1 - RARE, repeats, rate)
    if name != "ties":
        assert alarms >= stats.binom.ppf(RARE, repeats, rank / (images + 1))


@pytest.mark.parametrize("images", [20, 100, 500])
def test_defects_among_the_good_make_the_threshold_careful(images: int) -> None:
    repeats, rate = 4000, 0.05
    rng = np.random.default_rng(images)
    drawn = rng.normal(size=(repeats, images))
    drawn += 6 * (rng.random(drawn.shape) < 0.03)
    thresholds = np.sort(drawn, axis=1)[:, -largest_rank(images, rate)]
    alarms = int((rng.normal(size=repeats) > thresholds).sum())
    assert alarms <= stats.binom.ppf(1 - RARE, repeats, rate)


@pytest.mark.parametrize("images, rate", [(20, 0.1), (99, 0.01), (500, 0.01), (2000, 0.05)])
def test_the_range_holds_nine_calibrations_in_ten(images: int, rate: float) -> None:
    repeats, rank = 2000, largest_rank(images, rate)
    rng = np.random.default_rng(images)
    thresholds = np.sort(rng.normal(size=(repeats, images)), axis=1)[:, -rank]
    true_rates = stats.norm.sf(thresholds)
    low, high = false_alarm_range(images, rank, level=0.9)
    inside = int(((true_rates >= low) & (true_rates <= high)).sum())
    least, most = stats.binom.ppf([RARE, 1 - RARE], repeats, 0.9)
    assert least <= inside <= most
    below = int((true_rates <= false_alarm_bound(images, rank, confidence=0.9)).sum())
    assert least <= below <= most


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("images, rate", [(59, 0.05), (100, 0.05), (299, 0.01), (2000, 0.01)])
def test_with_confidence_few_calibrations_exceed_the_rate(
    name: str, images: int, rate: float
) -> None:
    repeats = 1500
    rng = np.random.default_rng(images)
    rank = largest_rank(images, rate, confidence=0.95)
    thresholds = np.sort(DRAWS[name](rng, (repeats, images)), axis=1)[:, -rank]
    beyond = {
        "normal": stats.norm(3, 0.3).sf,
        "heavy tails": stats.t(1.5).sf,
        "skewed": stats.lognorm(1).sf,
        "ties": stats.poisson(2.0).sf,
    }
    exceeded = int((beyond[name](thresholds) > rate).sum())
    assert exceeded <= stats.binom.ppf(1 - RARE, repeats, 0.05)


@pytest.mark.parametrize("name", DRAWS)
def test_smoothed_p_values_are_uniform_even_with_ties(name: str) -> None:
    repeats, images = 3000, 10
    rng = np.random.default_rng(5)
    drawn = DRAWS[name](rng, (repeats, images + 1))
    found = [float(p_values(row[1:], row[0], uniform=rng.random())) for row in drawn]
    assert stats.kstest(found, "uniform").pvalue > RARE


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: p_values([], 1.0), "calibration: expected a list of at least one score"),
        (lambda: p_values([1.0, math.nan], 1.0), "calibration: expected finite scores"),
        (lambda: p_values([1.0], math.inf), "scores: expected finite scores"),
        (lambda: p_values([1.0], "x"), "scores: expected numbers"),
        (lambda: p_values([1.0], [1.0], uniform=[2.0]), "uniform: expected numbers in"),
        (lambda: p_values([1.0], [1.0], uniform=0.5), "uniform: expected numbers in"),
        (lambda: largest_rank(10, 0.0), "rate: expected a share between 0 and 1, got 0"),
        (lambda: largest_rank(10, math.nan), "rate: expected"),
        (lambda: largest_rank(-1, 0.1), "images: expected 0 or more"),
        (lambda: largest_rank(10, 0.1, confidence=1.0), "confidence: expected"),
        (lambda: false_alarm_range(10, 0), "rank: expected 1 to 10"),
        (lambda: false_alarm_bound(10, 11), "rank: expected 1 to 10"),
        (lambda: conformal_threshold([1.0] * 32, 0.01), "rate: 1 % needs at least 99 .* have 32"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
