"""Pixel metrics and AUPRO against the definition, taken threshold by threshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics import aupro, auroc, average_precision, f1_max, pixel_metrics

Mask = NDArray[np.bool_]
Map = NDArray[np.floating]
Images = tuple[list[Mask], list[Map]]


@st.composite
def _images(draw: st.DrawFn) -> Images:
    """One to three images of different sizes with any masks and few or many score levels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 3, 8, 10**6]))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    sizes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
    masks = [rng.random(size) < density for size in [*sizes, (1, 2)]]
    masks[-1][:] = [[True, False]]
    maps = [(rng.integers(0, levels, mask.shape) + 0.5 * mask).astype(dtype) for mask in masks]
    return masks, maps


def _regions_by_flooding(mask: Mask) -> list[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), {left.pop()}
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge |= near
        regions.append(region)
    return regions


def _curve_by_thresholds(masks: list[Mask], maps: list[Map]) -> list[tuple[float, float]]:
    """(false positive rate, PRO) at (0, 0) and at every distinct score, from the highest."""
    good = np.concatenate([scores[~mask] for mask, scores in zip(masks, maps, strict=True)])
    regions = [
        [float(scores[pixel]) for pixel in region]
        for mask, scores in zip(masks, maps, strict=True)
        for region in _regions_by_flooding(mask)
    ]
    curve = [(0.0, 0.0)]
    for threshold in sorted({float(s) for scores in maps for s in scores.flat}, reverse=True):
        overlaps = [sum(s >= threshold for s in region) / len(region) for region in regions]
        curve.append((float((good >= threshold).mean()), sum(overlaps) / len(overlaps)))
    return curve


def _area_by_segments(curve: list[tuple[float, float]], limit: float) -> float:
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@given(_images(), st.sampled_from([0.01, 0.25, 0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_aupro_is_the_area_under_the_curve_over_all_thresholds(
    images: Images, limit: float
) -> None:
    expected = _area_by_segments(_curve_by_thresholds(*images), limit)
    assert aupro(*images, fpr_limit=limit) == pytest.approx(expected, abs=1e-9)


@given(_images())
@settings(deadline=None)
def test_one_pass_gives_what_the_single_metrics_give(images: Images) -> None:
    masks, maps = images
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([m.ravel() for m in maps])
    found = pixel_metrics(masks, maps)
    assert found.auroc == auroc(labels, scores)
    assert found.average_precision == average_precision(labels, scores)
    assert (found.f1_max, found.f1_threshold) == f1_max(labels, scores)
    assert found.aupro == aupro(masks, maps)


@given(_images())
@settings(deadline=None)
def test_only_the_order_of_the_scores_counts(images: Images) -> None:
    masks, maps = images
    levels = np.unique(np.concatenate([m.ravel() for m in maps]))
    ranks = [np.searchsorted(levels, m).astype(np.float32) for m in maps]
    assert aupro(masks, ranks) == aupro(masks, maps)


@pytest.mark.parametrize("levels", [3, 10**9])
def test_agrees_with_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    masks = [rng.random((40, 30)) < 0.03, np.zeros((25, 35), dtype=np.bool_)]
    maps = [(rng.integers(0, levels, m.shape) / levels + m).astype(np.float32) for m in masks]
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([m.ravel() for m in maps])
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    found = pixel_metrics(masks, maps)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    expected = average_precision_score(labels, scores)
    assert found.average_precision == pytest.approx(expected, abs=1e-9)
    assert found.f1_max == pytest.approx(f1.max(), abs=1e-9)


def test_regions_count_alike_whatever_their_size_and_image() -> None:
    small, large = np.zeros((4, 4), dtype=np.bool_), np.zeros((8, 8), dtype=np.bool_)
    small[0, 0] = True
    large[:4, :4] = True
    maps = [small.astype(np.float32), np.zeros((8, 8), dtype=np.float32)]
    # PRO is 1/2 at FPR 0; from there straight to (1, 1), which is 0.65 at the limit.
    assert aupro([small, large], maps) == pytest.approx((0.5 + 0.65) / 2)
    assert aupro([small, large], maps, fpr_limit=1.0) == pytest.approx(0.75)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    touching = np.zeros((3, 20), dtype=np.bool_)
    touching[0, 0] = touching[1, 1] = touching[0, 2] = True
    touching[2, 18] = True
    scores = np.zeros((3, 20))
    scores[2, 18] = 2.0
    scores[touching] += 1.0
    apart = touching.copy()
    apart[1, 1] = False
    # A good pixel is hotter than the first region, as hot as nothing else.
    scores[2, 10] = 2.5
    # Two regions: 1/2 found before the good pixel lights up, against 1/3 with three.
    first = 1 / np.count_nonzero(~touching)
    assert aupro([touching], [scores], fpr_limit=first) == pytest.approx(1 / 2)
    first = 1 / np.count_nonzero(~apart)
    assert aupro([apart], [scores], fpr_limit=first) == pytest.approx(1 / 3)


def test_the_curve_is_cut_at_the_limit_within_a_step() -> None:
    # Ten good pixels; five tie with the only defect: the curve is a slope from (0, 0) to (0.5, 1).
    mask = np.array([[True] + [False] * 10])
    scores = np.array([[1.0] * 6 + [0.0] * 5])
    assert aupro([mask], [scores], fpr_limit=0.3) == pytest.approx(0.3)
    assert aupro([mask], [scores], fpr_limit=0.5) == pytest.approx(0.5)
    assert aupro([mask], [scores], fpr_limit=1.0) == pytest.approx(0.75)


def test_good_pixels_of_images_without_defects_enter_the_rate() -> None:
    mask, scores = np.array([[True, False]]), np.array([[0.5, 0.0]])
    clean, hot = np.zeros((1, 9), dtype=np.bool_), np.full((1, 9), 0.9)
    assert aupro([mask], [scores]) == 1.0
    assert aupro([mask, clean], [scores, hot], fpr_limit=0.9) == 0.0


def test_a_perfect_and_an_inverted_map() -> None:
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[3:6, 3:6] = True
    scores = mask.astype(np.float32)
    assert aupro([mask], [scores]) == pytest.approx(1.0, abs=1e-15)
    assert aupro([mask], [-scores]) == 0.0


def test_the_input_is_left_alone() -> None:
    mask, scores = np.array([[True, False, False]]), np.array([[0.2, 0.9, 0.1]])
    pixel_metrics([mask], [scores])
    assert scores.tolist() == [[0.2, 0.9, 0.1]]
    assert mask.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    "masks",
    [[], [np.zeros((2, 2), dtype=np.bool_)], [np.ones((2, 2), dtype=np.bool_)]],
    ids=["no-image", "no-defect", "no-good-pixel"],
)
def test_an_undefined_metric_is_refused(masks: list[Mask]) -> None:
    maps = [np.zeros((2, 2), dtype=np.float32) for _ in masks]
    for metric in (aupro, pixel_metrics):
        with pytest.raises(UndefinedMetricError, match="need defect pixels and good pixels"):
            metric(masks, maps)


@pytest.mark.parametrize(
    ("mask", "scores", "message"),
    [
        (np.eye(2, dtype=np.bool_), np.full((2, 2), np.nan), r"finite; maps\[0\] holds NaN"),
        (np.eye(2, dtype=np.bool_), np.zeros((2, 3)), r"\(2, 3\), its mask has shape \(2, 2\)"),
        (np.eye(2, dtype=np.bool_), np.zeros((2, 2), dtype=np.uint8), "maps must be floating"),
        (np.eye(2, dtype=np.uint8), np.zeros((2, 2)), "masks must be boolean"),
        (np.ones((1, 2, 2), dtype=np.bool_), np.zeros((1, 2, 2)), r"shape \(1, 2, 2\)"),
    ],
    ids=["nan", "shapes", "integer-map", "integer-mask", "three-dimensional"],
)
def test_unusable_input_is_refused(mask: Mask, scores: Map, message: str) -> None:
    for metric in (aupro, pixel_metrics):
        with pytest.raises(ValueError, match=message):
            metric([mask], [scores])


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, np.nan])
def test_a_limit_outside_zero_to_one_is_refused(limit: float) -> None:
    for metric in (aupro, pixel_metrics):
        with pytest.raises(ValueError, match="fpr_limit must be above 0 and at most 1"):
            metric([np.eye(2, dtype=np.bool_)], [np.eye(2)], fpr_limit=limit)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 masks and 2 maps"):
        aupro([np.eye(2, dtype=np.bool_)], [np.eye(2), np.eye(2)])
