"""Thresholds: the false-alarm rate they promise, by simulation, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mambaadv2.calibrate import ColourScale, calibrate_classes, colour_scale
from mambaadv2.errors import ConfigError


def false_alarm_rates(
    images: int, spreads: Sequence[float], *, repeats: int, rate: float = 0.01
) -> list[float]:
    """Expected share of flagged good images per class, when scores are normal around 3.

    The share beyond a threshold is exact, so only the calibration images are random.
    """
    rng = np.random.default_rng(7)
    total = np.zeros(len(spreads))
    for _ in range(repeats):
        scores = {
            str(i): (3 * rng.normal(1, spread, images)).tolist() for i, spread in enumerate(spreads)
        }
        found = calibrate_classes(scores, rate=rate)
        total += [
            stats.norm.sf((found[str(i)].threshold / 3 - 1) / spread)
            for i, spread in enumerate(spreads)
        ]
    shares: list[float] = (total / repeats).tolist()
    return shares


@pytest.mark.parametrize("images", [2, 4, 8, 32, 200])
def test_false_alarm_rate_of_one_class_is_nominal(images: int) -> None:
    # Exact in theory; the tolerance is four standard errors of this simulation.
    (share,) = false_alarm_rates(images, [0.1], repeats=500)
    assert share == pytest.approx(0.01, abs=0.0045)


@pytest.mark.parametrize("images", [2, 4, 8, 32, 200])
def test_false_alarm_rate_of_many_like_classes_is_nominal(images: int) -> None:
    # The prior counts as 8 images although more stand behind it: at most a third too careful.
    # Relative scores lean on the class's own mean: with 2 images that doubles the rate at most.
    shares = false_alarm_rates(images, [0.1] * 6, repeats=60)
    assert 0.006 < float(np.mean(shares)) < (0.02 if images == 2 else 0.014)


@pytest.mark.parametrize("images", [4, 8, 32, 200])
def test_classes_four_times_apart_in_spread_stay_in_bounds(images: int) -> None:
    # Leaning on calmer classes costs the widest one: up to 8 % at 4 images, 2 % from 32 on.
    shares = false_alarm_rates(images, [0.05, 0.1, 0.1, 0.2], repeats=100)
    assert float(np.mean(shares)) < 0.025
    assert max(shares) < (0.08 if images < 32 else 0.02)


def test_rate_is_heeded() -> None:
    (share,) = false_alarm_rates(16, [0.1], repeats=200, rate=0.1)
    assert share == pytest.approx(0.1, abs=0.015)


def test_a_class_of_two_close_images_is_not_taken_for_that_calm() -> None:
    steady = np.random.default_rng(0).normal(1, 0.1, 50).tolist()
    found = calibrate_classes({"few": [1.0, 1.0001], "steady": steady})
    assert found["few"].threshold > 1.2
    assert found["few"].images == 2
    assert found["steady"].images == 50


def test_one_image_in_all_gets_a_default_margin() -> None:
    found = calibrate_classes({"lone": [2.0]})
    margin = found["lone"].threshold / 2.0 - 1
    assert margin == pytest.approx(stats.t.ppf(0.99, df=8) * 0.05 * math.sqrt(2))


def test_equal_scores_give_that_score() -> None:
    found = calibrate_classes({"a": [1.5] * 4, "b": [0.5] * 4})
    assert found["a"].threshold == pytest.approx(1.5)
    assert found["b"].threshold == pytest.approx(0.5)


positive = st.floats(0.1, 10.0)


@given(st.lists(st.lists(positive, min_size=1, max_size=6), min_size=1, max_size=4), positive)
def test_thresholds_follow_the_unit_and_not_the_order(
    samples: list[list[float]], unit: float
) -> None:
    scores = {str(i): values for i, values in enumerate(samples)}
    found = calibrate_classes(scores)
    scaled = calibrate_classes({n: [unit * v for v in values] for n, values in scores.items()})
    turned = calibrate_classes({n: scores[n][::-1] for n in reversed(scores)})
    assert list(found) == list(scores)
    for name, values in scores.items():
        assert found[name].threshold >= math.exp(np.log(values).mean()) * (1 - 1e-9)
        # Two images may set a threshold of e^50: relative to its logarithm's size.
        log = math.log(found[name].threshold)
        assert math.log(turned[name].threshold) == pytest.approx(log, rel=1e-6, abs=1e-6)
        assert math.log(scaled[name].threshold) == pytest.approx(
            log + math.log(unit), rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("calm", [0.0, 0.001, 0.1])
def test_a_calm_image_does_not_raise_the_threshold_much(calm: float) -> None:
    usual = calibrate_classes({"nut": [0.9, 1.0, 1.05, 1.1, 1.2]})["nut"].threshold
    found = calibrate_classes({"nut": [calm, 1.0, 1.05, 1.1, 1.2]})["nut"].threshold
    assert usual < found < 4.0


@pytest.mark.parametrize(
    "bad", [[], [0.0], [0.0, 0.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]]
)
def test_scores_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"class 'bolt'.*finite scores >= 0"):
        calibrate_classes({"nut": [1.0], "bolt": bad})


@pytest.mark.parametrize("rate", [0.0, 0.5, -0.1, 1.0, math.nan])
def test_bad_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate: expected"):
        calibrate_classes({"nut": [1.0]}, rate=rate)


def test_colour_scale_starts_where_normal_pixels_end() -> None:
    maps = [np.linspace(0, top, 1000, dtype=np.float32).reshape(20, 50) for top in (0.5, 0.7)]
    scale = colour_scale(maps)
    assert scale.low == pytest.approx(0.99 * 0.6, rel=1e-3)
    assert scale.low < 1 < scale.high


def test_colour_scale_stays_below_the_threshold() -> None:
    scale = colour_scale([np.full((4, 4), 3.0, dtype=np.float32)])
    assert scale.low < 1 < scale.high


def test_colour_scale_needs_a_map() -> None:
    with pytest.raises(ConfigError, match="at least one map"):
        colour_scale([])


@pytest.mark.parametrize(
    "low, high", [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (math.nan, 1.0), (0.0, math.inf)]
)
def test_impossible_colour_scales_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="colour scale"):
        ColourScale(low=low, high=high)
