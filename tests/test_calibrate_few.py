"""Few images: leave-out p-values, all classes together; and a whole batch at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mambaadv2.calibrate import (
    adjusted_p_values,
    cross_guarantee,
    cross_p_values,
    discoveries,
    p_values,
    pooled_p_value,
    pooled_threshold,
)
from mambaadv2.errors import ConfigError

Array = NDArray[np.float64]
RARE = 1e-6


@given(st.data())
def test_cross_p_values_count(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 12))
    count = data.draw(st.integers(2, n))
    folds = [i % count for i in range(n)]
    whole = st.integers(0, 6).map(float)
    known = data.draw(st.lists(whole, min_size=n, max_size=n))
    asked = data.draw(st.lists(st.lists(whole, min_size=count, max_size=count), max_size=4))
    assume(asked)
    found = cross_p_values(known, folds, asked)
    for p, row in zip(found, asked, strict=True):
        assert p == (1 + sum(known[i] >= row[folds[i]] for i in range(n))) / (n + 1)


def _mahalanobis(points: Array, at: Array) -> Array:
    """(r,) distances of (r, d) points from the mean and covariance of (r, n, d) ones."""
    centred = points - points.mean(axis=1, keepdims=True)
    covariance = np.einsum("rni,rnj->rij", centred, centred) / points.shape[1]
    offset = at - points.mean(axis=1)
    solved = np.linalg.solve(covariance + 0.05 * np.eye(points.shape[2]), offset[:, :, None])
    found: Array = np.sqrt((offset * solved[:, :, 0]).sum(axis=1))
    return found


@pytest.mark.parametrize("folds", [4, 20])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_leave_out_whitening_keeps_the_proven_rate(folds: int, rate: float) -> None:
    """The package's case: whitening and calibration by the same few images."""
    repeats, n = 1500, 20
    rng = np.random.default_rng(folds)
    points, new = rng.standard_t(4, (repeats, n, 5)), rng.standard_t(4, (repeats, 5))
    which = np.arange(n) % folds
    own, fresh = np.empty((repeats, n)), np.empty((repeats, folds))
    for fold in range(folds):
        others = points[:, which != fold]
        fresh[:, fold] = _mahalanobis(others, new)
        for i in np.flatnonzero(which == fold):
            own[:, i] = _mahalanobis(others, points[:, i])
    p = np.array([cross_p_values(own[r], which, fresh[r : r + 1])[0] for r in range(repeats)])
    flagged = int((p <= rate).sum())
    assert flagged <= stats.binom.ppf(1 - RARE, repeats, cross_guarantee(n, folds, rate))
    assert flagged > 0


def test_cross_guarantee_is_never_below_twice_the_rate() -> None:
    assert cross_guarantee(50, 50, 0.1) == 0.2
    assert cross_guarantee(50, 5, 0.1) == pytest.approx(0.2 + min(1.6 / 11, 0.9 / 6))
    assert cross_guarantee(4, 2, 0.9) == 1.0


@pytest.mark.parametrize(
    "known, folds, asked, words",
    [
        ([], [], [[1.0]], "calibration"),
        ([1.0, 2.0], [0], [[1.0, 2.0]], "folds: expected 2 whole numbers"),
        ([1.0, 2.0], [0.0, 1.0], [[1.0, 2.0]], "folds: expected 2 whole numbers"),
        ([1.0, 2.0], [0, 2], [[1.0, 2.0, 3.0]], "none empty, got"),
        ([1.0, 2.0], [0, 0], [[1.0]], "K at least 2"),
        ([1.0, 2.0], [0, 1], [[1.0]], r"scores: expected \(m, 2\)"),
        ([1.0, math.nan], [0, 1], [[1.0, 1.0]], "calibration: expected finite"),
    ],
)
def test_wrong_folds_are_refused(
    known: list[float], folds: list[int], asked: list[list[float]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        cross_p_values(known, folds, asked)


@pytest.mark.parametrize("images, folds", [(5, 1), (5, 6)])
def test_impossible_folds_have_no_guarantee(images: int, folds: int) -> None:
    with pytest.raises(ConfigError, match="folds: expected 2 to 5"):
        cross_guarantee(images, folds, 0.1)
    with pytest.raises(ConfigError, match="rate"):
        cross_guarantee(5, 5, 0.0)


positive = st.floats(0.1, 10.0)
samples = st.lists(st.lists(positive, min_size=1, max_size=8), min_size=1, max_size=3)


@given(samples, positive)
def test_pooled_p_values_count(values: list[list[float]], score: float) -> None:
    classes = {str(i): sample for i, sample in enumerate(values)}
    mean = (sum(classes["0"]) + score) / (len(classes["0"]) + 1)
    # The image's own class by rank, whose division by a common mean may round ties apart.
    above = sum(v >= score for v in classes["0"])
    near = 0
    for name, sample in classes.items():
        if name != "0":
            relative = np.array(sample) / np.mean(sample)
            above += int((relative > score / mean * (1 + 1e-9)).sum())
            near += int((np.abs(relative - score / mean) <= 1e-9 * score / mean).sum())
    total = 1 + sum(map(len, values))
    found = pooled_p_value(classes, "0", score) * total
    assert 1 + above <= found + 1e-9
    assert found <= 1 + above + near + 1e-9


@given(samples, positive, st.sampled_from([0.05, 0.1, 0.3, 0.7]))
def test_the_pooled_threshold_is_where_its_p_value_turns(
    values: list[list[float]], score: float, rate: float
) -> None:
    classes = {str(i): sample for i, sample in enumerate(values)}
    threshold = pooled_threshold(classes, "0", rate)
    if math.isinf(threshold):
        assert pooled_p_value(classes, "0", 1e9) > rate
    elif abs(score / threshold - 1) > 1e-9:
        assert (score > threshold) == (pooled_p_value(classes, "0", score) <= rate)


def test_pooling_serves_a_rate_that_no_class_can() -> None:
    """Four classes of 30, scores of one shape and four units: 1 % in all and in each."""
    rng = np.random.default_rng(8)
    repeats, units = 3000, (1.0, 5.0, 20.0, 0.1)
    flagged = np.zeros(4, dtype=np.int64)
    for r in range(repeats):
        classes = {str(i): (u * rng.normal(1, 0.1, 30)).tolist() for i, u in enumerate(units)}
        i = r % 4
        flagged[i] += pooled_p_value(classes, str(i), units[i] * rng.normal(1, 0.1)) <= 0.01
    assert flagged.sum() <= stats.binom.ppf(1 - RARE, repeats, 0.01)
    assert flagged.max() <= stats.binom.ppf(1 - RARE, repeats // 4, 0.012)
    assert flagged.sum() > 0


def test_pooling_holds_over_all_images_and_not_for_a_wilder_class() -> None:
    """The gap that the documentation states, so that nobody takes it for a bug."""
    rng = np.random.default_rng(9)
    repeats, spreads = 3000, (0.02, 0.02, 0.02, 0.2)
    flagged = np.zeros(4, dtype=np.int64)
    for _ in range(repeats):
        # Classes as often as they are seen: drawn at random, for both.
        drawn = rng.integers(0, 4, 121)
        values = rng.normal(1, [spreads[c] for c in drawn])
        classes = {str(c): values[:-1][drawn[:-1] == c].tolist() for c in range(4)}
        flagged[drawn[-1]] += pooled_p_value(classes, str(drawn[-1]), float(values[-1])) <= 0.05
    assert flagged.sum() <= stats.binom.ppf(1 - RARE, repeats, 0.05)
    assert flagged[3] / (repeats / 4) > 0.1
    assert flagged[:3].sum() == 0


@pytest.mark.parametrize(
    "classes, name, score, words",
    [
        ({"a": [1.0]}, "b", 1.0, "name: expected one of the classes"),
        ({"a": []}, "a", 1.0, "class 'a'"),
        ({"a": [0.0]}, "a", 1.0, "class 'a': expected scores >= 0, not all 0"),
        ({"a": [-1.0, 2.0]}, "a", 1.0, "class 'a': expected scores >= 0"),
        ({"a": [1.0]}, "a", -1.0, "score: expected"),
        ({"a": [1.0]}, "a", math.nan, "score: expected"),
    ],
)
def test_pooling_refuses(
    classes: dict[str, list[float]], name: str, score: float, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        pooled_p_value(classes, name, score)


def test_pooled_thresholds_refuse() -> None:
    with pytest.raises(ConfigError, match="rate: expected"):
        pooled_threshold({"a": [1.0]}, "a", 1.0)
    with pytest.raises(ConfigError, match="name: expected"):
        pooled_threshold({"a": [1.0]}, "b", 0.1)


@given(st.lists(st.integers(1, 50).map(lambda k: k / 50), max_size=30), st.floats(0.01, 0.99))
def test_discoveries_are_those_of_the_definition(p: list[float], share: float) -> None:
    ordered = sorted(p)
    k = max((i for i in range(1, len(p) + 1) if ordered[i - 1] <= share * i / len(p)), default=0)
    limit = ordered[k - 1] if k else -1.0
    edge = any(math.isclose(v * len(p) / (i + 1), share) for i, v in enumerate(ordered))
    if not edge:  # the two ways to divide may round a tie apart
        assert discoveries(p, share).tolist() == [v <= limit for v in p]
    assert (adjusted_p_values(p) >= np.array(p) - 1e-12).all()


def test_adjusted_p_values_are_scipys() -> None:
    p = np.random.default_rng(0).random(40) ** 3
    assert adjusted_p_values(p) == pytest.approx(stats.false_discovery_control(p))


@pytest.mark.parametrize("images", [50, 200, 2000])
def test_flagged_images_are_mostly_defects(images: int) -> None:
    """40 images, 10 of them defects that are hard to miss; all ranked by the same good ones."""
    repeats, share, good = 1000, 0.2, 30
    rng = np.random.default_rng(images)
    shares = []
    for _ in range(repeats):
        batch = np.concatenate([rng.normal(size=good), rng.normal(5, 1, 10)])
        flagged = discoveries(p_values(rng.normal(size=images), batch), share)
        shares.append(flagged[:good].sum() / max(1, flagged.sum()))
    # Hoeffding: shares lie in 0..1 and batches are independent.
    slack = math.sqrt(-math.log(RARE) / (2 * repeats))
    assert np.mean(shares) <= share * good / 40 + slack
    assert np.mean(shares) > 0


@pytest.mark.parametrize("bad", [[1.1], [-0.1], [math.nan], [[0.5]]])
def test_what_is_no_p_value_is_refused(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match="p_values: expected"):
        discoveries(bad)


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ConfigError, match="share: expected"):
        discoveries([0.5], share)
