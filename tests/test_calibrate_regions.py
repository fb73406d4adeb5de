"""Regions of a map and the threshold for them, against a flood fill and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage, stats

from mambaadv2.calibrate import RegionRule, map_threshold, p_values, regions
from mambaadv2.errors import ConfigError

Map = NDArray[np.float64]
RARE = 1e-6

maps = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.integers(0, 5).map(float),
)


def flooded(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Components of 8 neighbours as sets of (y, x), pixel by pixel."""
    rest = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while rest:
        queue, component = [rest.pop()], set()
        while queue:
            y, x = queue.pop()
            component.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & rest
            rest -= near
            queue += near
        found.append(component)
    return found


@given(maps, st.integers(0, 5), st.integers(1, 6))
def test_regions_are_those_of_a_flood_fill(values: Map, threshold: int, min_area: int) -> None:
    min_area = min(min_area, values.size)
    rule = RegionRule(min_area=min_area)
    found = regions(values, threshold, rule=rule)
    expected = [c for c in flooded(values > threshold) if len(c) >= min_area]
    assert sorted(r.area for r in found) == sorted(map(len, expected))
    boxes = []
    for component in expected:
        ys, xs = zip(*component, strict=True)
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    assert sorted(r.box for r in found) == sorted(boxes)
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)
    for region in found:
        x, y = region.at
        (own,) = (c for c in expected if (y, x) in c)
        assert values[y, x] == max(values[pixel] for pixel in own)
        levels = [v for v in range(6) if _holds(values, own, v, min_area)]
        assert region.peak == max(levels) > threshold


def _holds(values: Map, own: set[tuple[int, int]], level: float, min_area: int) -> bool:
    mask = np.zeros(values.shape, dtype=np.bool_)
    for pixel in own:
        mask[pixel] = values[pixel] >= level
    return any(len(c) >= min_area for c in flooded(mask))


@given(maps, st.integers(1, 6), st.integers(-1, 5))
def test_a_region_is_there_exactly_when_the_peak_is_above(
    values: Map, min_area: int, threshold: int
) -> None:
    rule = RegionRule(min_area=min(min_area, values.size))
    peak = rule.peak(values)
    assert peak == max(
        v for v in range(6) if any(len(c) >= rule.min_area for c in flooded(values >= v))
    )
    assert bool(regions(values, threshold, rule=rule)) == (peak > threshold)


def test_a_p_value_is_that_of_the_peak() -> None:
    values = np.zeros((9, 9))
    values[1, 1], values[5:8, 5:8] = 9.0, 3.0
    values[6, 6] = 4.0
    known = [1.0, 2.0, 3.5, 5.0]
    one, two = regions(values, 0.5, peaks=known)
    assert [(r.peak, r.area) for r in (one, two)] == [(9.0, 1), (4.0, 9)]
    assert [r.p_value for r in (one, two)] == p_values(known, [9.0, 4.0]).tolist()
    (only,) = regions(values, 0.5, rule=RegionRule(min_area=5), peaks=known)
    assert (only.peak, only.p_value) == (3.0, float(p_values(known, 3.0)))
    assert regions(values, 0.5)[0].p_value is None


def test_smoothing_is_part_of_the_rule() -> None:
    values = np.zeros((32, 32))
    values[16, 16] = 100.0
    rule = RegionRule(sigma=3.0)
    assert rule.peak(values) == pytest.approx(100 / (2 * math.pi * 9), rel=0.02)
    (region,) = regions(values, 0.5, rule=rule)
    assert region.at == (16, 16)
    assert region.area > 20


@pytest.mark.parametrize("rule", [RegionRule(), RegionRule(min_area=12), RegionRule(sigma=1.0)])
def test_few_good_images_have_any_region(rule: RegionRule) -> None:
    """The guarantee, for maps whose noise differs from image to image."""
    images, sets, rate = 39, 60, 0.05
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(sets):
        drawn = [
            ndimage.gaussian_filter(rng.normal(size=(24, 24)), 1.5) * rng.lognormal(0, 0.4)
            for _ in range(images + 1)
        ]
        threshold = map_threshold([rule.peak(values) for values in drawn[1:]], rate)
        alarms += bool(regions(drawn[0], threshold, rule=rule))
    assert alarms <= stats.binom.ppf(1 - RARE, sets, rate)


def test_most_good_images_have_none_but_not_all() -> None:
    """The same with exact arithmetic, so that a threshold at infinity would be noticed."""
    rng = np.random.default_rng(7)
    repeats, images, rate = 3000, 19, 0.2
    peaks = rng.lognormal(size=(repeats, images + 1))
    alarms = sum(row[0] > map_threshold(row[1:].tolist(), rate) for row in peaks)
    low, high = stats.binom.ppf([RARE, 1 - RARE], repeats, rate)
    assert low <= alarms <= high


def test_too_few_good_maps_say_so() -> None:
    with pytest.raises(ConfigError, match="needs at least 99 held-out good images, you have 3"):
        map_threshold([1.0, 2.0, 3.0], 0.01)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 3)), np.array([[math.nan]]), np.zeros((2, 2, 2))]
)
def test_what_is_no_map_is_refused(values: Map) -> None:
    with pytest.raises(ConfigError, match="values: expected a finite"):
        regions(values, 1.0)
    with pytest.raises(ConfigError, match="values: expected a finite"):
        RegionRule().peak(values)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_area: expected 1 pixel"):
        RegionRule(min_area=0)
    with pytest.raises(ConfigError, match="sigma: expected"):
        RegionRule(sigma=math.nan)
    with pytest.raises(ConfigError, match="min_area: expected at most the 4 pixels"):
        RegionRule(min_area=5).peak(np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="threshold: expected"):
        regions(np.zeros((2, 2)), math.inf)
