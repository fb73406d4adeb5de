"""Streaming pixel metrics against full precision, and their bounds against the worst orders."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics import (
    PixelBounds,
    Resampling,
    StreamedMetrics,
    StreamingPool,
    bounds,
    pixel_metrics,
    streaming,
)
from mambaadv2.metrics.grid import key_scores, ordered_keys

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]
Images = tuple[list[Mask], list[Map]]

NAMES = ("auroc", "average_precision", "f1_max", "iou_max", "aupro")
ROUNDING = 1e-11


def _pool(images: Images, **settings: int) -> StreamingPool:
    pool = StreamingPool(**settings)  # type: ignore[arg-type]
    for mask, scores in zip(*images, strict=True):
        pool.add(mask, scores)
    return pool


def _range(bounds: PixelBounds, name: str) -> tuple[float, float]:
    found: tuple[float, float] = getattr(bounds, name)
    return found


@st.composite
def _images(draw: st.DrawFn) -> Images:
    """One to four images of different sizes, with few or many scores over a small or wide range."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))
    kind = draw(st.sampled_from(["levels", "normal", "narrow", "log", "outlier"]))
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
    masks = [rng.random(size) < density for size in [*sizes, (1, 2)]]
    masks[-1][:] = [[True, False]]
    maps = []
    for mask in masks:
        noise = rng.standard_normal(mask.shape) + 0.7 * mask
        if kind == "levels":
            noise = np.round(noise)
        elif kind == "narrow":
            noise = 1000 + 1e-3 * noise
        elif kind == "log":
            noise = np.exp(np.clip(20 * noise, -80, 80))  # within float32
        maps.append(noise.astype(np.float32))
    if kind == "outlier":
        maps[0][0, 0] = 1e30
    return masks, maps


@given(_images(), st.sampled_from([1, 4]), st.sampled_from([0.01, 0.3, 1.0]))
@settings(deadline=None)
def test_the_metrics_of_the_binned_scores_are_exact(
    images: Images, pages: int, limit: float
) -> None:
    pool = _pool(images, pages=pages, page_bits=8)
    found = pool.metrics(fpr_limit=limit)
    level = np.uint32(pool.grid.level)
    binned = [key_scores((ordered_keys(scores) >> level) << level) for scores in images[1]]
    expected = pixel_metrics(images[0], binned, fpr_limit=limit)
    weights = pool.n_defect / (pool.n_regions * 2**40)  # how far whole weights are off
    for name in NAMES:
        within = ROUNDING + (weights if name == "aupro" else 0.0)
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=within), name
    assert found.f1_threshold == expected.f1_threshold
    assert found.roc == expected.roc
    assert found.precision_recall == expected.precision_recall


@given(_images(), st.sampled_from([1, 4, 256]), st.sampled_from([0.01, 0.3, 1.0]))
@settings(deadline=None)
def test_full_precision_lies_within_the_bounds(images: Images, pages: int, limit: float) -> None:
    found = _pool(images, pages=pages, page_bits=8).metrics(fpr_limit=limit)
    exact = pixel_metrics(*images, fpr_limit=limit)
    for name in NAMES:
        low, high = _range(found.bounds, name)
        assert 0 <= low <= high <= 1
        assert low - ROUNDING <= getattr(exact, name) <= high + ROUNDING, name
        assert low - ROUNDING <= getattr(found, name) <= high + ROUNDING, name
    if found.level == 0:
        assert found.bounds.widest < 1e-9


@given(_images())
@settings(deadline=None)
def test_the_threshold_gives_its_f1_at_full_precision(images: Images) -> None:
    found = _pool(images, pages=1, page_bits=8).metrics()
    called = np.concatenate([scores.ravel() >= found.f1_threshold for scores in images[1]])
    truth = np.concatenate([mask.ravel() for mask in images[0]])
    f1 = 2 * (called & truth).sum() / (called.sum() + truth.sum())
    assert f1 == pytest.approx(found.f1_max, abs=1e-12)
    iou = (called & truth).sum() / (called | truth).sum()
    assert iou == pytest.approx(found.iou_max, abs=1e-12)


def test_iou_max_is_the_best_of_all_thresholds() -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((20, 20)) < 0.2
    scores = (rng.integers(0, 30, mask.shape) + 8 * mask).astype(np.float32)
    best = max(
        ((scores >= t) & mask).sum() / ((scores >= t) | mask).sum() for t in np.unique(scores)
    )
    assert _pool(([mask], [scores])).metrics().iou_max == pytest.approx(best)
    assert pixel_metrics([mask], [scores]).iou_max == pytest.approx(best)


@pytest.mark.parametrize("side", ["low", "high"])
def test_the_bounds_are_reached_by_the_worst_order_within_the_bins(side: str) -> None:
    """Of all scores that fall into the same bins, those with the defects at one end of each."""
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 50), dtype=np.bool_)
    mask[5:15, 5:20] = mask[30:33, 30:40] = True
    start = rng.integers(0x3F80_0000, 0x4080_0000, mask.shape, dtype=np.uint32)
    pool = _pool(([mask], [start.view(np.float32)]), pages=1, page_bits=8)
    level = pool.grid.level
    assert level > 8
    low = (start >> np.uint32(level)) << np.uint32(level)
    top = np.uint32((1 << level) - 1)
    bits = np.where(mask == (side == "high"), low + top, low)
    if side == "low":
        bits[mask] += np.arange(mask.sum(), dtype=np.uint32)  # apart, so that they come one by one
    moved = bits.view(np.float32)
    exact = pixel_metrics([mask], [moved])
    found = _pool(([mask], [moved]), pages=1, page_bits=8).metrics()
    assert found.auroc == pool.metrics().auroc  # the histograms are the same
    end = 1 if side == "high" else 0
    for name in ("auroc", "aupro", "average_precision", "f1_max", "iou_max"):
        bound = _range(found.bounds, name)[end]
        # The low end of AP is a bit lower than what is possible.
        slack = 1e-3 if (name, side) == ("average_precision", "low") else 1e-9
        assert getattr(exact, name) == pytest.approx(bound, abs=slack), name
    assert found.bounds.widest > 1e-3


def _smooth(seed: int, count: int = 24, size: int = 96) -> Images:
    """Maps as models make them: smooth, skewed, warmer where the defect is, of which some glow."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for at in range(count):
        mask = np.zeros((size, size), dtype=np.bool_)
        if at % 2:
            y, x = rng.integers(0, size - 20, 2)
            mask[y : y + rng.integers(2, 20), x : x + rng.integers(2, 20)] = True
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 4) * 8
        warm = ndimage.gaussian_filter(mask.astype(float), 3) * rng.uniform(0, 4)
        masks.append(mask)
        maps.append(np.exp(0.5 * noise + warm).astype(np.float32))
    return masks, maps


def _made(kind: str, maps: list[Map]) -> list[Map]:
    if kind == "narrow":
        return [(1000 + 1e-3 * scores).astype(np.float32) for scores in maps]
    if kind == "hot":
        maps[0][3, 3] = 1e6 * max(scores.max() for scores in maps)
    if kind == "negative":
        return [(-1 / scores).astype(np.float32) for scores in maps]
    if kind == "tiny":
        return [(scores**12 * 1e-20).astype(np.float32) for scores in maps]
    if kind == "half":
        return [scores.astype(np.float16).astype(np.float32) for scores in maps]
    return maps


@pytest.mark.parametrize("kind", ["plain", "narrow", "hot", "negative", "tiny", "half"])
def test_the_difference_to_full_precision_is_below_1e_4(kind: str) -> None:
    masks, maps = _smooth(5)
    maps = _made(kind, maps)
    _require_near(_pool((masks, maps)).metrics(), (masks, maps))


def _require_near(found: StreamedMetrics, images: Images) -> None:
    exact = pixel_metrics(*images)
    for name in NAMES:
        low, high = _range(found.bounds, name)
        assert low - ROUNDING <= getattr(exact, name) <= high + ROUNDING
        assert abs(getattr(found, name) - getattr(exact, name)) < 1e-4
    assert found.bounds.widest < 1e-4


def test_scores_of_few_bits_are_counted_exactly_even_where_bits_are_dropped() -> None:
    masks, maps = _smooth(5)
    images = masks, _made("half", maps)
    found = _pool(images).metrics()
    assert found.level > 0
    assert found.bounds.widest < 1e-9
    assert found.auroc == pixel_metrics(*images).auroc


@pytest.mark.real
@pytest.mark.slow
def test_the_difference_to_full_precision_is_below_1e_4_on_real_images(real_data: Path) -> None:
    """Maps of real test images: distances to remembered patches, as `scripts/bench memory`."""
    from benchmarks._metric_maps import real_maps

    masks, maps = real_maps(real_data, "cookie", most=30)
    _require_near(_pool((masks, maps)).metrics(), (masks, maps))


@given(_images(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_pools_add_up_in_any_order(images: Images, seed: int) -> None:
    rng = np.random.default_rng(seed)
    once = _pool(images, pages=2, page_bits=8)
    parts = [StreamingPool(pages=2, page_bits=8) for _ in range(3)]
    for at in rng.permutation(len(images[0])):
        parts[rng.integers(3)].add(images[0][at], images[1][at])
    whole = StreamingPool(pages=2, page_bits=8)
    for part in parts:
        whole.merge(part)
    assert whole.metrics() == once.metrics()
    assert (whole.n_images, whole.n_regions) == (once.n_images, once.n_regions)


def test_metrics_may_be_asked_for_at_any_time() -> None:
    masks, maps = _smooth(1, count=6)
    pool = _pool((masks[:4], maps[:4]))
    early = pool.metrics()
    assert early == pool.metrics()
    pool.add(masks[4], maps[4])
    pool.add(masks[5], maps[5])
    assert pool.metrics() == _pool((masks, maps)).metrics() != early


def test_the_pool_does_not_grow_with_the_images() -> None:
    masks, maps = _smooth(2, count=4)
    pool = _pool((masks, maps))
    before = sum(table.nbytes for table in pool.grid.tables.values())
    for _ in range(10):
        for mask, scores in zip(masks, maps, strict=True):
            pool.add(mask, scores)
    assert sum(table.nbytes for table in pool.grid.tables.values()) == before <= 25_300_000
    found = pool.metrics()
    assert found.auroc == pytest.approx(_pool((masks, maps)).metrics().auroc, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4095])
def test_every_region_weighs_the_same_without_a_rest(size: int) -> None:
    mask = np.zeros((3, 5000), dtype=np.bool_)
    mask[0, :size] = True
    mask[2, 4000] = True
    weights, regions = streaming._region_weights(mask)
    unit = 2**streaming.WEIGHT_BITS
    assert regions == 2
    assert weights[:-1].sum() == weights[-1] == unit
    assert abs(weights[:-1] / unit - 1 / size).max() <= size / unit


def test_what_comes_in_blocks_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool(_smooth(4, count=6))
    whole = pool.metrics()
    monkeypatch.setattr(bounds, "BLOCK", 100)
    found = pool.metrics()
    assert found.f1_threshold == whole.f1_threshold
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-12)
        assert _range(found.bounds, name) == pytest.approx(_range(whole.bounds, name), abs=1e-12)


def test_very_many_pixels_do_not_overflow() -> None:
    pool = _pool(_smooth(2, count=4))
    before = pool.metrics()
    for table in pool.grid.tables.values():
        np.multiply(table, 10**5, out=table)  # a product of two counts has more than 63 bits
    pool.n_pixels, pool.n_defect = pool.n_pixels * 10**5, pool.n_defect * 10**5
    pool.n_regions *= 10**5
    assert pool.metrics().auroc == pytest.approx(before.auroc, abs=1e-12)


def test_half_precision_maps_are_taken_and_more_than_float32_is_refused() -> None:
    mask = np.array([[True, False]])
    pool = StreamingPool()
    pool.add(mask, np.array([[0.75, 0.5]], dtype=np.float16))
    assert pool.metrics().f1_threshold == 0.75
    with pytest.raises(ValueError, match=r"maps\[1\] is float64: pass"):
        pool.add(mask, np.array([[0.75, 0.5]]))


@pytest.mark.parametrize(
    "scores, message",
    [
        (np.array([[np.nan, 0]], dtype=np.float32), r"finite; maps\[0\]"),
        (np.zeros((2, 2), dtype=np.float32), r"\(2, 2\), its mask has shape \(1, 2\)"),
        (np.zeros((1, 2), dtype=np.uint8), "floating point"),
    ],
)
def test_unusable_maps_are_refused(scores: Map, message: str) -> None:
    pool = StreamingPool()
    with pytest.raises(ValueError, match=message):
        pool.add(np.array([[True, False]]), scores)
    assert pool.n_images == pool.n_pixels == 0


def test_undefined_metrics_and_limits_are_refused() -> None:
    flat = np.zeros((2, 2), dtype=np.float32)
    for mask in (np.zeros((2, 2), dtype=np.bool_), np.ones((2, 2), dtype=np.bool_)):
        with pytest.raises(UndefinedMetricError, match="need defect pixels and good pixels"):
            _pool(([mask], [flat])).metrics()
    with pytest.raises(UndefinedMetricError):
        StreamingPool().metrics()
    pool = _pool(([np.eye(2, dtype=np.bool_)], [flat]))
    for limit in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="fpr_limit"):
            pool.metrics(fpr_limit=limit)


def test_more_regions_than_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_REGIONS", 2)
    mask, scores = np.array([[True, False, True]]), np.zeros((1, 3), dtype=np.float32)
    pool, other = _pool(([mask], [scores])), _pool(([mask], [scores]))
    with pytest.raises(ValueError, match=r"masks\[1\] brings the regions to 4"):
        pool.add(mask, scores)
    with pytest.raises(ValueError, match="more than 2 regions"):
        pool.merge(other)


def test_pools_of_different_making_are_not_added() -> None:
    with pytest.raises(ValueError, match="one grid"):
        StreamingPool().merge(StreamingPool(pages=4))
    with pytest.raises(ValueError, match="one resampling"):
        StreamingPool().merge(StreamingPool(resampling=Resampling(replicates=2)))


def test_intervals_need_keys_and_a_resampling() -> None:
    mask, scores = np.eye(2, dtype=np.bool_), np.zeros((2, 2), dtype=np.float32)
    pool = StreamingPool(resampling=Resampling(replicates=2))
    for key in (None, ""):
        with pytest.raises(ValueError, match=r"maps\[0\] has no key"):
            pool.add(mask, scores, key)
    with pytest.raises(ValueError, match="no resampling"):
        _pool(([mask], [scores])).sampled()


def test_the_example_on_the_page_runs() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
