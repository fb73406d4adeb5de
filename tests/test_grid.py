"""The grid of scores against sorting and counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mambaadv2.metrics.grid import Grid, key_scores, ordered_keys

any_score = st.floats(width=32, allow_nan=False, allow_infinity=False)
lists = st.lists(st.one_of(any_score, st.sampled_from([0.0, -0.0, 1.0, 1.0000001])), min_size=1)
Scores = NDArray[np.float32]


def _grid(pages: int = 2, page_bits: int = 8) -> Grid:
    return Grid(pages, page_bits, {"all": ((), np.int64), "rows": ((3,), np.float64)})


def _add(grid: Grid, scores: Scores) -> None:
    at = grid.place(ordered_keys(scores))
    np.add.at(grid.tables["all"], at, 1)
    for row in range(3):
        np.add.at(grid.tables["rows"][row], at, row + 1.0)


def _content(grid: Grid) -> tuple[int, dict[int, int], dict[int, list[float]]]:
    keys, at = grid.bins()
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    some = np.flatnonzero(grid.tables["all"][at])
    counts = grid.tables["all"][at[some]]
    rows = grid.tables["rows"][:, at[some]].T
    low = keys[some].tolist()
    return (
        grid.level,
        dict(zip(low, counts.tolist(), strict=True)),
        dict(zip(low, rows.tolist(), strict=True)),
    )


def _lowest_level(keys: NDArray[np.uint32], grid: Grid) -> int:
    """The first at which all keys fit, by trying."""
    level = 0
    while len({int(key) >> (level + grid.page_bits) for key in keys}) > grid.pages:
        level += 1
    return level


@given(lists)
def test_keys_are_in_the_order_of_the_scores_and_give_them_back(values: list[float]) -> None:
    scores = np.array(values, dtype=np.float32)
    keys = ordered_keys(scores)
    assert (key_scores(keys) == scores).all()
    below = scores[:, None] < scores[None]
    assert ((keys[:, None] < keys[None]) == below).all()


def test_the_scores_given_are_left_alone() -> None:
    scores = np.array([[-0.0, -3.0]], dtype=np.float32)
    assert ordered_keys(scores).shape == (1, 2)
    assert np.signbit(scores).all()


@given(lists, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 8]))
@settings(deadline=None)
def test_a_histogram_depends_on_the_scores_alone(
    values: list[float], seed: int, pages: int
) -> None:
    scores = np.array(values, dtype=np.float32)
    keys = ordered_keys(scores)
    once = _grid(pages)
    _add(once, scores)
    level = _lowest_level(keys, once)
    counted = Counter((int(key) >> level) << level for key in keys)
    assert _content(once)[:2] == (level, counted)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(scores)
    piecemeal, other = _grid(pages), _grid(pages)
    cut = int(rng.integers(0, scores.size + 1))
    for part in np.array_split(shuffled[:cut], 3):
        _add(piecemeal, part)
    _add(other, shuffled[cut:])
    before = _content(other)
    piecemeal.absorb(other)
    assert _content(piecemeal) == _content(once)
    assert _content(other) == before
    # Going on after adding up is as good as any other order.
    piecemeal.absorb(once)
    assert _content(piecemeal)[1] == {key: 2 * n for key, n in counted.items()}


def test_neighbouring_float32_values_have_a_bin_each_until_the_pages_run_out() -> None:
    base = np.float32(1000)
    scores = (base.view(np.uint32) + np.arange(512, dtype=np.uint32)).view(np.float32)
    grid = _grid(pages=4)
    _add(grid, scores)
    assert grid.level == 0
    assert len(_content(grid)[1]) == 512
    # One hot outlier takes a page and no resolution.
    _add(grid, np.array([3e38], dtype=np.float32))
    assert grid.level == 0


def test_every_float32_has_a_place() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32)
    scores = bits[np.isfinite(bits)]
    grid = Grid(256, 12, {"all": ((), np.int64), "rows": ((3,), np.float64)})
    _add(grid, scores)
    assert grid.level == 12
    assert grid.tables["all"].sum() == scores.size
    # A bin of a positive score is no wider than 2^(level - 23) of it.
    keys, _ = grid.bins()
    low = key_scores(keys[keys >= np.uint32(0x8080_0000)][:-1])
    ends = key_scores(keys[keys >= np.uint32(0x8080_0000)][1:])
    normal = np.isfinite(ends)
    assert ((ends[normal] - low[normal]) / low[normal] <= 2.0 ** (12 - 23)).all()


@pytest.mark.parametrize("pages, page_bits", [(0, 8), (3, 8), (2, 7), (2, 17), (2**20, 12)])
def test_a_grid_that_cannot_be_is_refused(pages: int, page_bits: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Grid(pages, page_bits, {})
