"""Thresholds: the false-alarm rate they promise, by simulation, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mambaadv2.calibrate import (
    ColourScale,
    assumed_limits,
    calibrate_classes,
    colour_marks,
    colour_scale,
    p_values,
    suspects,
)
from mambaadv2.errors import ConfigError


def assumed_rates(
    images: int, spreads: Sequence[float], *, repeats: int, rate: float = 0.01
) -> list[float]:
    """Expected share of good images above the assumed limits, when scores are normal around 3.

    The share beyond a threshold is exact, so only the calibration images are random.
    """
    rng = np.random.default_rng(7)
    total = np.zeros(len(spreads))
    for _ in range(repeats):
        scores = {
            str(i): (3 * rng.normal(1, spread, images)).tolist() for i, spread in enumerate(spreads)
        }
        found = assumed_limits(scores, rate)
        total += [
            stats.norm.sf((found[str(i)] / 3 - 1) / spread) for i, spread in enumerate(spreads)
        ]
    shares: list[float] = (total / repeats).tolist()
    return shares


@pytest.mark.parametrize("images", [2, 4, 8, 32, 200])
def test_assumed_rate_of_one_class_is_nominal_for_normal_scores(images: int) -> None:
    # Exact in theory; the tolerance is four standard errors of this simulation.
    (share,) = assumed_rates(images, [0.1], repeats=500)
    assert share == pytest.approx(0.01, abs=0.0045)


@pytest.mark.parametrize("images", [2, 4, 8, 32, 200])
def test_assumed_rate_of_many_like_classes_is_nominal(images: int) -> None:
    # The prior counts as 8 images although more stand behind it: at most a third too careful.
    # Relative scores lean on the class's own mean: with 2 images that doubles the rate at most.
    shares = assumed_rates(images, [0.1] * 6, repeats=60)
    assert 0.006 < float(np.mean(shares)) < (0.02 if images == 2 else 0.014)


@pytest.mark.parametrize("images", [4, 8, 32, 200])
def test_classes_four_times_apart_in_spread_stay_in_bounds(images: int) -> None:
    # Leaning on calmer classes costs the widest one: up to 8 % at 4 images, 2 % from 32 on.
    shares = assumed_rates(images, [0.05, 0.1, 0.1, 0.2], repeats=100)
    assert float(np.mean(shares)) < 0.025
    assert max(shares) < (0.08 if images < 32 else 0.02)


def test_assumed_rate_is_heeded() -> None:
    (share,) = assumed_rates(16, [0.1], repeats=200, rate=0.1)
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


def test_enough_images_give_the_conformal_threshold() -> None:
    scores = np.random.default_rng(3).permutation(np.arange(1.0, 201.0)).tolist()
    found = calibrate_classes({"nut": scores})["nut"]
    assert (found.kind, found.rank, found.threshold) == ("conformal", 2, 199.0)
    assert found.guaranteed == 2 / 201
    low, high = found.interval()
    assert low < 0.01 < high
    assert found.sentence.startswith("Guaranteed from 200 held-out good images: on average at most")


def test_too_few_images_say_so_and_keep_what_they_can() -> None:
    scores = np.random.default_rng(3).normal(3, 0.3, 32).tolist()
    found = calibrate_classes({"nut": scores})["nut"]
    assert found.kind == "assumed"
    assert found.threshold == max(*scores, assumed_limits({"nut": scores}, 0.01)["nut"])
    assert found.guaranteed == 1 / 33
    assert found.interval()[0] == 0
    assert found.sentence == (
        "1 % is assumed, not guaranteed: 1 % needs at least 99 held-out good images, you have 32. "
        "Guaranteed from 32 held-out good images: on average at most 3.1 % of good images are "
        "flagged, and with 90 % confidence at most 7 %. Good images that look mislabelled would be "
        "left out; counting those as well, the average is at most 6.1 %."
    )
    near = calibrate_classes({"nut": scores}, leave_one_out=True)["nut"]
    assert near.threshold == found.threshold
    assert "Guaranteed" not in near.sentence
    assert "each scored by the statistics of the others" in near.sentence


def test_an_assumed_threshold_is_never_below_a_good_score() -> None:
    # Normal but for one image: the assumed limit lies below it, and no guarantee would be left.
    scores = [*np.random.default_rng(5).normal(3, 0.03, 18).tolist(), 4.0]
    assert assumed_limits({"nut": scores}, 0.1)["nut"] < 4.0
    found = calibrate_classes({"nut": scores}, rate=0.04)["nut"]
    assert (found.kind, found.threshold) == ("assumed", 4.0)


@pytest.mark.parametrize("images, kind", [(298, "assumed"), (299, "conformal")])
def test_confidence_takes_more_images(images: int, kind: str) -> None:
    scores = np.random.default_rng(1).normal(3, 0.3, images).tolist()
    found = calibrate_classes({"nut": scores}, confidence=0.95)["nut"]
    assert found.kind == kind
    assert "95 % confidence" in found.sentence


def test_scores_of_zero_leave_a_threshold_to_divide_by() -> None:
    found = calibrate_classes({"nut": [0.0] * 30 + [0.5, 0.7]}, rate=0.2)["nut"]
    assert found.kind == "conformal"
    assert found.threshold == 0.5


def test_a_mislabelled_image_is_left_out_and_priced() -> None:
    rng = np.random.default_rng(2)
    good = (1 + 0.1 * rng.normal(size=199)).tolist()
    scores = [*good[:50], 4.0, *good[50:]]
    found = calibrate_classes({"nut": scores})["nut"]
    alone = calibrate_classes({"nut": good})["nut"]
    assert found.trimmed == (50,)
    assert (found.images, found.kept) == (200, 199)
    assert found.threshold == alone.threshold
    assert found.guaranteed == alone.guaranteed == 2 / 200
    assert found.guaranteed_for_any_scores == (2 + 10) / 201
    assert "1 image looks mislabelled and was left out." in found.sentence
    assert "the average is at most 6 %" in found.sentence
    kept = calibrate_classes({"nut": scores}, trim=False)["nut"]
    assert kept.trimmed == ()
    assert kept.guaranteed_for_any_scores == kept.guaranteed == 2 / 201
    assert "mislabelled" not in kept.sentence


@pytest.mark.parametrize("share", [0.005, 0.01, 0.03])
def test_trimming_keeps_to_its_bound_for_any_scores(share: float) -> None:
    # Good images only, some of which score so high that they are taken for defects.
    n, repeats = 199, 1500
    rng = np.random.default_rng(11)

    def draw(count: int) -> NDArray[np.float64]:
        high = rng.random(count) < share
        drawn: NDArray[np.float64] = np.exp(0.1 * rng.standard_normal(count) + 3 * high)
        return drawn

    flagged, bound = 0, 0.0
    for _ in range(repeats):
        found = calibrate_classes({"nut": draw(n).tolist()})["nut"]
        flagged += int(draw(1)[0] > found.threshold)
        bound = found.guaranteed_for_any_scores
    assert bound == (2 + 9) / 200
    assert flagged <= stats.binom.ppf(1 - 1e-6, repeats, bound)
    # What it is there for: without the bound for any scores the promise would be broken.
    if share == 0.01:
        assert flagged / repeats > 0.0105


def test_suspects_are_the_far_ones_and_few() -> None:
    steady = np.linspace(0.9, 1.1, 37).tolist()
    assert suspects(steady) == ()
    assert suspects([*steady[:5], 3.0, *steady[5:], 5.0]) == (38,)  # 5 % of 39 is one, the highest
    assert suspects([*steady, 3.0, 5.0, 4.0]) == (38, 39)
    assert suspects([*steady[:18], 5.0]) == ()  # fewer than 20 images
    assert suspects([1.0] * 30 + [5.0]) == ()  # nothing to measure by
    assert suspects([0.0] * 30 + [5.0]) == ()


@pytest.mark.parametrize("images", [20, 64, 500])
@pytest.mark.parametrize("shape", ["normal", "lognormal"])
def test_good_images_are_seldom_suspected(images: int, shape: str) -> None:
    rng = np.random.default_rng(4)
    draws = rng.normal(size=(600, images))
    scores = np.exp(0.3 * draws) if shape == "lognormal" else np.maximum(1 + 0.1 * draws, 0.01)
    # Below 1 % in truth: 600 cases then exceed this once in a million.
    assert sum(bool(suspects(row.tolist())) for row in scores) <= stats.binom.ppf(
        1 - 1e-6, 600, 0.01
    )


@pytest.mark.parametrize("bad", [[1.0, -1.0], [1.0, math.nan]])
def test_suspects_refuses_what_is_no_score(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match="scores: expected"):
        suspects(bad)
    with pytest.raises(ConfigError, match="share and limit"):
        suspects([1.0], share=0.7)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60), st.floats(0.5, 2.0))
def test_colour_marks_are_p_values(peaks: list[float], threshold: float) -> None:
    marks = colour_marks(peaks, threshold)
    assert [p for _, p in marks] == sorted({p for _, p in marks}, reverse=True)
    assert [at for at, _ in marks] == sorted(at for at, _ in marks)
    for at, p in marks:
        level = float(np.nextafter(at * threshold * (1 + 1e-12), np.inf))
        assert p_values(peaks, [level])[0] <= p + 1e-12


def test_colour_marks_need_a_threshold() -> None:
    with pytest.raises(ConfigError, match="threshold: expected"):
        colour_marks([1.0], 0.0)


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
