"""Resampling against repeating the images, and intervals against the theory and by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics import (
    ImagePool,
    Resampling,
    Sampled,
    StreamingPool,
    difference,
    image_key,
    image_metrics,
    mean_sampled,
    pixel_metrics,
)
from mambaadv2.metrics.counted import counted_rows

PIXEL_NAMES = ("auroc", "average_precision", "f1_max", "iou_max", "aupro")
IMAGE_NAMES = ("auroc", "average_precision", "f1_max", "iou_max")
SMALL = Resampling(seed=5, replicates=40, groups=4)

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]


def _keys(count: int) -> list[str]:
    return [f"class/test/{at:03d}.png" for at in range(count)]


def _numbers(keys: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([image_key(key) for key in keys])


def _images(seed: int, count: int, levels: int = 12) -> tuple[list[Mask], list[Map]]:
    rng = np.random.default_rng(seed)
    masks = [rng.random((9, 11)) < (0.1 if at % 2 else 0.0) for at in range(count)]
    maps = [
        (rng.integers(0, levels, mask.shape) + rng.integers(0, 3) + 4 * mask).astype(np.float32)
        for mask in masks
    ]
    return masks, maps


def _pool(
    masks: Sequence[Mask], maps: Sequence[Map], keys: Sequence[str], drawn: Resampling = SMALL
) -> StreamingPool:
    pool = StreamingPool(resampling=drawn)
    for mask, scores, key in zip(masks, maps, keys, strict=True):
        pool.add(mask, scores, key)
    return pool


def _image_pool(defect: Sequence[bool], scores: Sequence[float], keys: Sequence[str]) -> ImagePool:
    pool = ImagePool()
    for one in zip(defect, scores, keys, strict=True):
        pool.add(*one)
    return pool


def test_draws_are_poisson_and_those_of_two_images_or_seeds_have_nothing_in_common() -> None:
    keys = _numbers(_keys(300))
    drawn = Resampling(replicates=1000).weights(keys)
    counts = np.bincount(drawn.astype(int).ravel(), minlength=8)
    expected = drawn.size * np.array([math.exp(-1) / math.factorial(k) for k in range(8)])
    # Chi-square with about 7 degrees of freedom: above 30 once in 10,000 seeds.
    assert ((counts[:8] - expected) ** 2 / expected).sum() < 30
    for other in (drawn[:, ::-1], Resampling(seed=1, replicates=1000).weights(keys), drawn[::-1]):
        assert abs(np.asarray(np.corrcoef(drawn.ravel(), other.ravel()))[0, 1]) < 0.01
    across = np.asarray(np.corrcoef(drawn.T))[np.triu_indices(300, 1)]
    assert abs(across).max() < 6 / math.sqrt(1000)


def test_draws_depend_on_the_seed_and_the_name_alone() -> None:
    keys = _numbers(_keys(20))
    drawn = SMALL.weights(keys)
    assert (SMALL.weights(keys[::-1]) == drawn[:, ::-1]).all()
    assert (SMALL.weights(keys, range(7, 9)) == drawn[7:9]).all()
    more = Resampling(seed=5, replicates=80, groups=4)
    assert (more.weights(keys)[:40] == drawn).all()
    assert set(SMALL.groups_of(_numbers(_keys(100))).tolist()) == {0, 1, 2, 3}


def test_replicates_are_the_metrics_of_the_images_drawn() -> None:
    masks, maps = _images(0, 14)
    keys = _keys(14)
    found = _pool(masks, maps, keys).sampled()
    drawn = SMALL.weights(_numbers(keys)).astype(int)
    for row in range(0, 40, 7):
        again = [at for at in range(14) for _ in range(drawn[row, at])]
        expected = pixel_metrics([masks[at] for at in again], [maps[at] for at in again])
        for name in PIXEL_NAMES:
            value = getattr(expected, name)
            assert found[name].replicates[row] == pytest.approx(value, abs=1e-6), name
    part = SMALL.groups_of(_numbers(keys))
    for group in range(4):
        rest = [at for at in range(14) if part[at] != group]
        expected = pixel_metrics([masks[at] for at in rest], [maps[at] for at in rest])
        for name in PIXEL_NAMES:
            value = getattr(expected, name)
            assert found[name].left_out[group] == pytest.approx(value, abs=1e-6), name
    for name in PIXEL_NAMES:
        assert found[name].value == getattr(_pool(masks, maps, keys).metrics(), name)


def test_image_replicates_are_the_metrics_of_the_images_drawn() -> None:
    rng = np.random.default_rng(1)
    defect = rng.random(25) < 0.4
    scores = np.round(rng.standard_normal(25) + defect, 1)
    keys = _keys(25)
    pool = _image_pool(defect.tolist(), scores.tolist(), keys)
    assert pool.metrics() == image_metrics(defect, scores)
    found = pool.sampled(SMALL)
    drawn = SMALL.weights(_numbers(keys)).astype(int)
    part = SMALL.groups_of(_numbers(keys))
    for row in range(40):
        expected = image_metrics(np.repeat(defect, drawn[row]), np.repeat(scores, drawn[row]))
        for name in IMAGE_NAMES:
            value = getattr(expected, name)
            assert found[name].replicates[row] == pytest.approx(value, abs=1e-12), name
    for group in range(4):
        expected = image_metrics(defect[part != group], scores[part != group])
        assert found["auroc"].left_out[group] == pytest.approx(expected.auroc, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=6)
def test_neither_order_nor_worker_changes_a_replicate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks, maps = _images(seed, 70, levels=10**6)  # more images than wait for one block
    keys = _keys(70)
    once = _pool(masks, maps, keys).sampled()
    parts = [StreamingPool(resampling=SMALL) for _ in range(3)]
    for at in rng.permutation(70):
        parts[rng.integers(3)].add(masks[at], maps[at], keys[at])
    whole = StreamingPool(resampling=SMALL)
    for part in parts:
        whole.merge(part)
    for name, sampled in whole.sampled().items():
        assert (sampled.replicates == once[name].replicates).all()
        assert (sampled.left_out == once[name].left_out).all()


def test_image_pools_add_up_in_any_order() -> None:
    rng = np.random.default_rng(2)
    defect, scores = (rng.random(30) < 0.5).tolist(), rng.random(30).tolist()
    keys = _keys(30)
    once = _image_pool(defect, scores, keys)
    first = _image_pool(defect[20:], scores[20:], keys[20:])
    first.merge(_image_pool(defect[:20], scores[:20], keys[:20]))
    assert first.metrics() == once.metrics()
    assert (
        first.sampled(SMALL)["auroc"].replicates == once.sampled(SMALL)["auroc"].replicates
    ).all()


def test_replicates_of_many_images_do_not_depend_on_how_they_are_split_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mambaadv2.metrics import counted, images

    rng = np.random.default_rng(3)
    pool = _image_pool((rng.random(50) < 0.5).tolist(), rng.random(50).tolist(), _keys(50))
    once = pool.sampled(SMALL)
    monkeypatch.setattr(images, "_DRAWN", 150)
    monkeypatch.setattr(counted, "_CHUNK", 100)
    for name, sampled in pool.sampled(SMALL).items():
        assert (sampled.replicates == once[name].replicates).all()
        assert (sampled.left_out == once[name].left_out).all()


def test_the_coarse_grid_moves_a_metric_little_and_says_by_how_much() -> None:
    rng = np.random.default_rng(4)
    masks = [rng.random((40, 40)) < 0.05 for _ in range(20)]
    maps = [np.exp(rng.standard_normal(mask.shape) + mask).astype(np.float32) for mask in masks]
    pool = _pool(masks, maps, _keys(20))
    found = pool.metrics()
    assert pool.replicates is not None
    assert pool.replicates.grid.level > found.level
    values = {name: getattr(found, name) for name in PIXEL_NAMES}
    lost = pool.replicates.resolution(values, 0.3)
    assert set(lost) == set(PIXEL_NAMES)
    assert 0 < max(lost.values()) < 2e-3
    level = np.uint32(pool.replicates.grid.level)
    coarse = [(scores.view(np.uint32) >> level).astype(np.float32) for scores in maps]
    assert lost["auroc"] == pytest.approx(
        abs(pixel_metrics(masks, coarse).auroc - found.auroc), abs=1e-9
    )


def test_replicates_without_a_defect_are_undefined_and_counted() -> None:
    pool = _image_pool([True, False, False], [0.9, 0.1, 0.2], _keys(3))
    sampled = pool.sampled(Resampling(replicates=400))["auroc"]
    undefined = int(np.isnan(sampled.replicates).sum())
    assert undefined == pytest.approx(400 * math.exp(-1) + 400 * math.exp(-2), abs=60)
    found = sampled.interval()
    assert found.replicates == 400 - undefined
    assert (found.low, found.high) == (1.0, 1.0)
    alone = Sampled(0.5, np.full(3, np.nan), np.full(2, np.nan)).interval()
    assert math.isnan(alone.low)
    assert alone.replicates == 0


def _bca(sampled: Sampled, level: float) -> tuple[float, float]:
    """Efron and Tibshirani 1993, equations 14.9 to 14.15, number by number."""
    normal = NormalDist()
    drawn = sorted(sampled.replicates.tolist())
    bias = normal.inv_cdf(sum(x < sampled.value for x in drawn) / len(drawn))
    mean = sum(sampled.left_out) / len(sampled.left_out)
    pulls = [mean - x for x in sampled.left_out]
    skew = sum(x**3 for x in pulls) / (6 * sum(x**2 for x in pulls) ** 1.5)
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        ends.append(np.quantile(drawn, normal.cdf(bias + z / (1 - skew * z))))
    return float(ends[0]), float(ends[1])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_are_bca(level: float) -> None:
    rng = np.random.default_rng(6)
    sampled = Sampled(1.0, rng.gamma(9, 0.12, 2000), 1 - rng.gamma(1, 0.02, 30))
    found = sampled.interval(level)
    assert (found.low, found.high) == pytest.approx(_bca(sampled, level), abs=1e-12)
    assert found.level == level
    percentile = np.quantile(sampled.replicates, [(1 - level) / 2, (1 + level) / 2])
    assert abs(found.low - percentile[0]) > 1e-3


def test_means_and_differences_go_replicate_by_replicate() -> None:
    rng = np.random.default_rng(7)
    keys = _keys(40)
    defect = (rng.random(40) < 0.5).tolist()
    scores = rng.standard_normal(40)
    first = _image_pool(defect, scores.tolist(), keys).sampled(SMALL)
    better = scores + 0.8 * np.array(defect)
    second = _image_pool(defect, better.tolist(), keys).sampled(SMALL)
    mean = mean_sampled([first["auroc"], second["auroc"], first["f1_max"]])
    values = (first["auroc"].value, second["auroc"].value, first["f1_max"].value)
    assert mean.value == pytest.approx(sum(values) / 3)
    assert mean.replicates[3] == pytest.approx(
        (
            first["auroc"].replicates[3]
            + second["auroc"].replicates[3]
            + first["f1_max"].replicates[3]
        )
        / 3
    )
    same = difference(first["auroc"], first["auroc"])
    assert (same.interval().low, same.interval().high) == (0.0, 0.0)
    apart = difference(second["auroc"], first["auroc"])
    # Paired, so narrower than either alone.
    assert np.std(apart.replicates) < np.std(first["auroc"].replicates)
    with pytest.raises(ValueError, match="at least one"):
        mean_sampled([])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3, 1.0]))
@settings(deadline=None)
def test_rows_of_counts_give_what_the_scores_give(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((8, 9)) < 0.3
    mask[0, :2] = [True, False]
    scores = rng.integers(0, 12, mask.shape).astype(np.float32)
    from mambaadv2.metrics.streaming import WEIGHT_BITS, _region_weights

    weights, _ = _region_weights(mask)
    bins = scores.astype(np.int64)
    good = np.bincount(bins[~mask], minlength=12).astype(np.float64)
    defect = np.bincount(bins[mask], minlength=12).astype(np.float64)
    region = np.bincount(bins[mask], weights / 2.0**WEIGHT_BITS, minlength=12)
    none = np.zeros(12)
    rows = counted_rows(
        np.stack([good, none, good]),
        np.stack([defect, defect, none]),
        np.stack([region, region, none]),
        fpr_limit=limit,
    ).by_name()
    expected = pixel_metrics([mask], [scores], fpr_limit=limit)
    for name in PIXEL_NAMES:
        assert rows[name][0] == pytest.approx(getattr(expected, name), abs=1e-9), name
        assert np.isnan(rows[name][1:]).all()


def _covered(samples: Sequence[Sampled], truth: float) -> float:
    found = [sampled.interval(0.9) for sampled in samples]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.slow
def test_intervals_of_image_metrics_hold_the_truth_as_often_as_they_say() -> None:
    """Scores of 40 good ones from N(0, 1), 60 defects from N(1.2, 1), 300 times over."""
    rng = np.random.default_rng(8)
    defect, keys = [False] * 40 + [True] * 60, _keys(100)
    samples: dict[str, list[Sampled]] = {"auroc": [], "average_precision": []}
    for trial in range(300):
        scores = rng.standard_normal(100) + 1.2 * np.array(defect)
        pool = _image_pool(defect, scores.tolist(), keys)
        found = pool.sampled(Resampling(seed=trial, replicates=400))
        for name, kept in samples.items():
            kept.append(found[name])
    truth = NormalDist().cdf(1.2 / math.sqrt(2))
    # Of 300, a share of 0.9 strays by 0.017. The share of defects is drawn again too, but was fixed
    # here, so that intervals of AP are a bit wide.
    assert 0.85 <= _covered(samples["auroc"], truth) <= 0.95
    many = rng.random(400_000) < 0.6
    at_large = image_metrics(many, rng.standard_normal(many.size) + 1.2 * many)
    assert 0.85 <= _covered(samples["average_precision"], at_large.average_precision) <= 0.98


def _warm(rng: np.random.Generator, count: int) -> tuple[list[Mask], list[Map]]:
    """Images that differ among each other: their pixels are not independent."""
    masks, maps = [], []
    for at in range(count):
        mask = np.zeros((12, 12), dtype=np.bool_)
        if at % 2:
            y, x = rng.integers(0, 8, 2)
            mask[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = True
        noise = rng.standard_normal(mask.shape) + 0.5 * rng.standard_normal()
        masks.append(mask)
        maps.append((noise + (1.5 + 0.7 * rng.standard_normal()) * mask).astype(np.float32))
    return masks, maps


@pytest.mark.slow
def test_intervals_of_pixel_metrics_hold_the_truth_as_often_as_they_say() -> None:
    """50 images, 120 times over, against the metrics of 6,000 images."""
    rng = np.random.default_rng(9)
    at_large = pixel_metrics(*_warm(rng, 6000))
    keys = _keys(50)
    samples: dict[str, list[Sampled]] = {name: [] for name in PIXEL_NAMES}
    for trial in range(120):
        masks, maps = _warm(rng, 50)
        pool = _pool(masks, maps, keys, Resampling(seed=trial, replicates=200))
        for name, sampled in pool.sampled().items():
            samples[name].append(sampled)
    for name, found in samples.items():
        # Of 120, a share of 0.9 strays by 0.027.
        assert 0.8 <= _covered(found, getattr(at_large, name)) <= 0.98, name


@pytest.mark.parametrize(
    "changes", [{"seed": -1}, {"seed": 2**64}, {"replicates": 0}, {"groups": 1}]
)
def test_a_resampling_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Resampling(**changes)


def test_bad_levels_scores_and_names_are_refused() -> None:
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Sampled(0.5, np.ones(3), np.ones(3)).interval(level)
    pool = ImagePool()
    with pytest.raises(ValueError, match=r"finite; 'a.png' has nan"):
        pool.add(True, math.nan, "a.png")
    with pytest.raises(ValueError, match="image 0 has no key"):
        pool.add(True, 0.5, "")
    with pytest.raises(UndefinedMetricError):
        pool.metrics()
    assert pool.n_images == 0
