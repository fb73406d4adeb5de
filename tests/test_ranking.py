"""Ranking metrics against their definitions, threshold by threshold, and against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics import auroc, average_precision, f1_max

Metric = Callable[[ArrayLike, ArrayLike], object]
Labels = NDArray[np.bool_]
Scores = NDArray[np.floating]


@st.composite
def _labelled(draw: st.DrawFn, score: st.SearchStrategy[float]) -> tuple[Labels, Scores]:
    pairs = draw(st.lists(st.tuples(st.booleans(), score), max_size=40))
    both = [*pairs, (True, draw(score)), (False, draw(score))]
    labels, scores = zip(*draw(st.permutations(both)), strict=True)
    return np.array(labels, dtype=np.bool_), np.array(scores)


few_levels = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0])
distinct = st.floats(-1e6, 1e6, width=32)
labelled = st.one_of(_labelled(few_levels), _labelled(distinct))


def _auroc_by_pairs(labels: Labels, scores: Scores) -> float:
    pairs = list(product(scores[labels], scores[~labels]))
    return sum(1.0 if d > g else 0.5 if d == g else 0.0 for d, g in pairs) / len(pairs)


def _curve_by_thresholds(labels: Labels, scores: Scores) -> list[tuple[float, float, float]]:
    """(threshold, precision, recall) at every distinct score, from the highest."""
    curve = []
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        hits = int((called & labels).sum())
        curve.append((threshold, hits / int(called.sum()), hits / int(labels.sum())))
    return curve


@given(labelled)
def test_auroc_is_the_share_of_ordered_pairs(case: tuple[Labels, Scores]) -> None:
    assert auroc(*case) == pytest.approx(_auroc_by_pairs(*case), abs=1e-12)


@given(labelled)
def test_average_precision_sums_precision_over_recall_gained(case: tuple[Labels, Scores]) -> None:
    area = last = 0.0
    for _, precision, recall in _curve_by_thresholds(*case):
        area += precision * (recall - last)
        last = recall
    assert average_precision(*case) == pytest.approx(area, abs=1e-12)


@given(labelled)
def test_f1_max_is_the_best_of_all_thresholds_and_is_reached_there(
    case: tuple[Labels, Scores],
) -> None:
    f1_at = {t: 2 * p * r / (p + r) if r else 0.0 for t, p, r in _curve_by_thresholds(*case)}
    f1, threshold = f1_max(*case)
    assert f1 == pytest.approx(max(f1_at.values()), abs=1e-12)
    assert f1_at[threshold] == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 7, 1000, 10**9], ids=lambda n: f"{n}-levels")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_scikit_learn(levels: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(levels)
    labels = rng.random(5000) < 0.1
    scores = (rng.integers(0, levels, 5000) / levels + 0.2 * labels).astype(dtype)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best, threshold = f1_max(labels, scores)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    expected = average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-9)
    assert best == pytest.approx(f1.max(), abs=1e-9)
    assert threshold in thresholds


@given(labelled)
def test_only_the_order_of_the_scores_counts(case: tuple[Labels, Scores]) -> None:
    labels, scores = case
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float32)
    for metric in (auroc, average_precision):
        assert metric(labels, ranks**3 - 5) == metric(labels, scores)
    assert f1_max(labels, ranks**3 - 5)[0] == f1_max(labels, scores)[0]


@given(labelled)
def test_swapping_the_classes_and_the_sign_keeps_auroc(case: tuple[Labels, Scores]) -> None:
    labels, scores = case
    assert auroc(~labels, -scores) == pytest.approx(auroc(labels, scores), abs=1e-12)
    assert auroc(~labels, scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


def test_all_scores_equal() -> None:
    labels, scores = [True, False, False, False], [0.5] * 4
    assert auroc(labels, scores) == 0.5
    assert average_precision(labels, scores) == 0.25
    assert f1_max(labels, scores) == (0.4, 0.5)


def test_neighbouring_float32_scores_are_two_thresholds_and_the_input_is_left_alone() -> None:
    low = np.float32(1e6)
    scores = np.array([np.nextafter(low, np.float32(np.inf)), low], dtype=np.float32)
    labels = np.array([True, False])
    assert auroc(labels, scores) == 1.0
    assert f1_max(labels, scores) == (1.0, float(scores[0]))
    assert scores.tolist() == [1000000.0625, 1000000.0]


def test_of_equally_good_thresholds_the_highest_is_given() -> None:
    # F1 = 2 TP / (TP + FP + 3) is 2/4 at 0.9 and 4/8 at 0.5.
    labels = [True, False, False, False, True, False, False, False, False, False, True]
    scores = [0.9, 0.8, 0.8, 0.8, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.1]
    assert f1_max(labels, scores) == (0.5, 0.9)


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max])
@pytest.mark.parametrize("labels", [[True, True], [False, False], []], ids=str)
def test_a_single_class_is_refused(metric: Metric, labels: list[bool]) -> None:
    with pytest.raises(UndefinedMetricError, match="needs defects and good ones"):
        metric(labels, [0.5] * len(labels))


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([True, False], [0.1, np.nan], r"finite; scores\[1\] is nan"),
        ([True, False], [-np.inf, 0.1], r"finite; scores\[0\] is -inf"),
        ([True, False], [0.1, 0.2, 0.3], r"one length; got shapes \(2,\) and \(3,\)"),
        ([[True, False]], [[0.1, 0.2]], r"1-D .* got shapes \(1, 2\)"),
        ([1, 0], [0.1, 0.2], "boolean; got int64"),
        ([True, False], [1, 2], "floating point; got int64"),
    ],
    ids=["nan", "infinity", "lengths", "two-dimensional", "integer-labels", "integer-scores"],
)
def test_unusable_input_is_refused(
    metric: Metric, labels: list[bool], scores: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)
