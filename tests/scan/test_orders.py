from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mambaadv2.errors import ConfigError
from mambaadv2.scan.orders import (
    DIRECTION_COUNTS,
    ORDER_NAMES,
    directions,
    hilbert_positions,
    inverse,
    scan_order,
)

names = st.sampled_from(ORDER_NAMES)
sides = st.integers(1, 24)

SMALL = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "boustrophedon": [0, 1, 2, 5, 4, 3, 6, 7, 8],
    "zigzag": [0, 1, 3, 6, 4, 2, 5, 7, 8],
    "zorder": [0, 1, 3, 4, 2, 5, 6, 7, 8],
    "hilbert": [0, 3, 6, 7, 8, 5, 4, 1, 2],
}


def steps(order: Tensor, width: int) -> list[tuple[int, int]]:
    """Distances in rows and in columns between positions visited one after the other."""
    places = [divmod(position, width) for position in order.tolist()]
    return [(abs(i - k), abs(j - m)) for (i, j), (k, m) in pairwise(places)]


def classic_hilbert(size: int) -> list[tuple[int, int]]:
    """The textbook conversion from distance to (column, row), for powers of two."""
    places = []
    for distance in range(size * size):
        i = j = 0
        scale, rest = 1, distance
        while scale < size:
            turn_i = 1 & (rest // 2)
            turn_j = 1 & (rest ^ turn_i)
            if turn_j == 0:
                if turn_i == 1:
                    i, j = scale - 1 - i, scale - 1 - j
                i, j = j, i
            i, j = i + scale * turn_i, j + scale * turn_j
            rest, scale = rest // 4, scale * 2
        places.append((i, j))
    return places


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_three_by_three_by_hand(name: str) -> None:
    assert scan_order(name, 3, 3).tolist() == SMALL[name]


@given(name=names, height=sides, width=sides, count=st.sampled_from(DIRECTION_COUNTS))
def test_every_direction_visits_every_position_once(
    name: str, height: int, width: int, count: int
) -> None:
    table = directions(name, height, width, count)
    assert table.shape == (count, height * width)
    assert table.dtype == torch.int64
    everything = torch.arange(height * width).expand(count, -1)
    assert torch.equal(table.sort(dim=1).values, everything)


@given(name=names, height=sides, width=sides)
def test_directions_are_nested_and_come_in_reverse_pairs(
    name: str, height: int, width: int
) -> None:
    table = directions(name, height, width, 8)
    assert torch.equal(table[0], scan_order(name, height, width))
    assert torch.equal(table[0::2].flip(1), table[1::2])
    for count in DIRECTION_COUNTS:
        assert torch.equal(directions(name, height, width, count), table[:count])


@given(name=names, height=sides, width=sides)
def test_third_direction_scans_the_transposed_map(name: str, height: int, width: int) -> None:
    image = torch.arange(height * width).view(height, width)
    transposed = image.t().flatten()[scan_order(name, width, height)]
    assert torch.equal(image.flatten()[directions(name, height, width, 4)[2]], transposed)


@given(name=names, height=sides, width=sides)
def test_inverse_puts_back_in_place(name: str, height: int, width: int) -> None:
    table = directions(name, height, width, 8)
    positions = torch.arange(height * width).expand(8, -1)
    back = inverse(table)
    assert torch.equal(table.gather(1, back), positions)
    assert torch.equal(back.gather(1, table), positions)
    assert torch.equal(inverse(table[0].int()), back[0].int())


@pytest.mark.parametrize("name", ORDER_NAMES)
@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 14, 15, 16, 28, 32, 56, 64])
def test_eight_directions_differ_on_squares(name: str, size: int) -> None:
    assert len({tuple(row) for row in directions(name, size, size, 8).tolist()}) == 8


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_hilbert_neighbours_touch(height: int, width: int) -> None:
    moves = steps(scan_order("hilbert", height, width), width)
    assert all(max(move) == 1 for move in moves)
    long, short = max(height, width), min(height, width)
    diagonal = sum(move == (1, 1) for move in moves)
    assert diagonal == int(long % 2 == 1 and short % 2 == 0 and short > 2)


@pytest.mark.parametrize("height, width", [(8, 8), (9, 9), (8, 12), (7, 5), (5, 7), (16, 15)])
def test_hilbert_starts_and_ends_in_corners_of_the_long_side(height: int, width: int) -> None:
    places = list(hilbert_positions(height, width))
    assert places[0] == (0, 0)
    assert places[-1] == ((0, width - 1) if width >= height else (height - 1, 0))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_hilbert_is_the_classic_curve_on_powers_of_two(size: int) -> None:
    ours = list(hilbert_positions(size, size))
    classic = classic_hilbert(size)
    assert ours in (classic, [(j, i) for i, j in classic])


@given(order=st.integers(1, 5))
def test_hilbert_keeps_blocks_together(order: int) -> None:
    """Each quarter of the walk stays in one quadrant, which is what makes the curve local."""
    size = 2**order
    places = torch.tensor(list(hilbert_positions(size, size)))
    quarters = (places // (size // 2)).view(4, -1, 2)
    assert torch.equal(quarters, quarters[:, :1].expand_as(quarters))
    assert len({tuple(quadrant) for quadrant in quarters[:, 0].tolist()}) == 4


@given(height=sides, width=sides)
def test_boustrophedon_only_makes_single_steps(height: int, width: int) -> None:
    moves = steps(scan_order("boustrophedon", height, width), width)
    assert all(sum(move) == 1 for move in moves)


@given(height=sides, width=sides)
def test_zigzag_walks_one_antidiagonal_after_the_other(height: int, width: int) -> None:
    sums = [sum(divmod(p, width)) for p in scan_order("zigzag", height, width).tolist()]
    assert sums == sorted(sums)
    assert all(max(move) == 1 for move in steps(scan_order("zigzag", height, width), width))


@given(height=sides, width=sides)
def test_zorder_of_a_rectangle_is_that_of_the_square_around_it(height: int, width: int) -> None:
    size = 32
    inside = [
        i * width + j
        for i, j in (divmod(p, size) for p in scan_order("zorder", size, size).tolist())
        if i < height and j < width
    ]
    assert scan_order("zorder", height, width).tolist() == inside


def test_callers_may_change_what_they_get() -> None:
    scan_order("hilbert", 4, 4).zero_()
    directions("hilbert", 4, 4, 1).zero_()
    assert scan_order("hilbert", 4, 4).sort().values.tolist() == list(range(16))


@pytest.mark.parametrize(
    "name, height, width, count, field",
    [
        ("spiral", 4, 4, 8, "name"),
        ("raster", 0, 4, 8, "height"),
        ("raster", 4, -1, 8, "width"),
        ("raster", 4, 4, 3, "count"),
        ("raster", 4, 4, 0, "count"),
    ],
)
def test_bad_arguments_are_named(
    name: str, height: int, width: int, count: int, field: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected"):
        directions(name, height, width, count)


def test_scan_order_checks_too() -> None:
    with pytest.raises(ConfigError, match="spiral"):
        scan_order("spiral", 4, 4)


def test_tables_live_on_the_cpu_whatever_the_context() -> None:
    with torch.device("meta"):
        table = directions("raster", 3, 11, 2)
    assert table.device.type == "cpu"
    assert scan_order("raster", 3, 11).tolist() == list(range(33))
