"""Scan orders: in which sequence a recurrent scan visits the positions of a feature map.

Everything here is integer tables on the CPU.  A position is its row index `i * width + j` in the
flattened (height, width) map.  `order[t]` is the position visited at step t, so `x[:, order]` is
the sequence and `y[:, inverse(order)]` puts a result back in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from mambaadv2.errors import ConfigError

DIRECTION_COUNTS = (1, 2, 4, 8)


def scan_order(name: str, height: int, width: int) -> Tensor:
    """One way through a `height` x `width` map, from the top left corner.

    Args:
        name: `raster` (rows, each from left to right), `boustrophedon` (rows, every second one
            backwards), `zigzag` (anti-diagonals, turning at each border, as in JPEG), `zorder`
            (Morton: the bits of i and j interleaved; positions outside the map are skipped) or
            `hilbert` (generalised Hilbert curve, see `hilbert_positions`).
        height: rows of the map, at least 1.
        width: columns of the map, at least 1.

    Returns:
        (height * width,) int64, a permutation; a fresh copy that the caller may change.

    Raises:
        ConfigError: the name is unknown, or a side is below 1.
    """
    _check(name, height, width)
    return _order(name, height, width).clone()


def directions(name: str, height: int, width: int, count: int) -> Tensor:
    """The orders of `count` directions; each count is a prefix of the next one.

    Row 0 is the order itself and row 1 the same read backwards.  Rows 2 and 3 do that on the
    transposed map and rows 4 and 5 on the map turned by 90 degrees, as in MambaAD (arXiv
    2404.06564).  A turned map of another shape is walked by the order of that shape.

    Rows 6 and 7 walk the map upside down, which is our choice.  MambaAD transposes the turned map,
    which is its mirror image; a Hilbert curve on a power-of-two square read backwards is its own
    mirror image, so there the last two directions repeat the first two.  Here all eight differ on
    every square map with at least two rows.  (Boustrophedon alone turns and flips the other way
    round, for the same reason.)

    Args:
        name: see `scan_order`.
        height: rows of the map, at least 1.
        width: columns of the map, at least 1.
        count: 1, 2, 4 or 8.

    Returns:
        (count, height * width) int64, every row a permutation.  On maps that are not square some
        rows may be equal: the Hilbert curve follows the long side, transposed or not.

    Raises:
        ConfigError: the name or the count is unknown, or a side is below 1.
    """
    _check(name, height, width)
    if count not in DIRECTION_COUNTS:
        raise ConfigError(f"count: expected one of {DIRECTION_COUNTS}, got {count!r}")
    grid = torch.arange(height * width, device="cpu").view(height, width)
    rows: list[Tensor] = []
    for turn in _TURNS.get(name, _DEFAULT_TURNS)[: (count + 1) // 2]:
        seen = turn(grid)
        forward = seen.flatten()[_order(name, *seen.shape)]
        rows += [forward, forward.flip(0)]
    return torch.stack(rows[:count])


def inverse(order: Tensor) -> Tensor:
    """The step at which each position is visited: `inverse(order)[order[t]] == t`.

    Args:
        order: (..., L) integer, permutations of 0..L-1 along the last dimension (not checked).

    Returns:
        (..., L), same dtype and device.
    """
    steps = torch.arange(order.shape[-1], dtype=order.dtype, device=order.device)
    return torch.empty_like(order).scatter_(-1, order.long(), steps.expand_as(order))


def hilbert_positions(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Walk a generalised Hilbert curve over any rectangle, as (row, column) pairs.

    Algorithm: J. Cerveny, "gilbert" (2018), github.com/jakubcerveny/gilbert.  The curve starts at
    (0, 0), follows the long side (the top row when square) and ends in the corner at its far end.
    On a power-of-two square it is the classic Hilbert curve.

    Each step goes to one of the four neighbours, with one exception: when the long side is odd and
    the short one even and above 2, exactly one step is diagonal.  Between those two corners that
    cannot be avoided: on a chessboard every straight step changes colour, but the corners have the
    same colour and the number of cells is even.  (A map of 2 by an odd number has no diagonal step;
    there the curve ends one cell short of the corner.)
    """
    if width >= height:
        yield from _gilbert((0, 0), (0, width), (height, 0))
    else:
        yield from _gilbert((0, 0), (height, 0), (0, width))


def _gilbert(
    start: tuple[int, int], along: tuple[int, int], across: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Fill the rectangle at `start` that two axis-parallel vectors span, ending along the first."""
    (i, j), (ai, aj), (bi, bj) = start, along, across
    length, breadth = abs(ai + aj), abs(bi + bj)
    dai, daj, dbi, dbj = _sign(ai), _sign(aj), _sign(bi), _sign(bj)
    if breadth == 1:
        yield from ((i + dai * n, j + daj * n) for n in range(length))
        return
    if length == 1:
        yield from ((i + dbi * n, j + dbj * n) for n in range(breadth))
        return

    # Halves are rounded away from odd lengths, because an odd block costs a diagonal step.
    half_a, half_b = length // 2, breadth // 2
    if 2 * length > 3 * breadth:
        half_a += half_a % 2 if length > 2 else 0
        hai, haj = dai * half_a, daj * half_a
        yield from _gilbert((i, j), (hai, haj), across)
        yield from _gilbert((i + hai, j + haj), (ai - hai, aj - haj), across)
        return
    half_b += half_b % 2 if breadth > 2 else 0
    hai, haj, hbi, hbj = dai * half_a, daj * half_a, dbi * half_b, dbj * half_b
    yield from _gilbert((i, j), (hbi, hbj), (hai, haj))
    yield from _gilbert((i + hbi, j + hbj), along, (bi - hbi, bj - hbj))
    yield from _gilbert(
        (i + ai - dai + hbi - dbi, j + aj - daj + hbj - dbj),
        (-hbi, -hbj),
        (hai - ai, haj - aj),
    )


def _raster(height: int, width: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(height) for j in range(width))


def _boustrophedon(height: int, width: int) -> Iterator[tuple[int, int]]:
    return ((i, width - 1 - j if i % 2 else j) for i, j in _raster(height, width))


def _zigzag(height: int, width: int) -> Iterator[tuple[int, int]]:
    for diagonal in range(height + width - 1):
        rows = range(max(0, diagonal - width + 1), min(height, diagonal + 1))
        for i in rows if diagonal % 2 else reversed(rows):
            yield i, diagonal - i


def _zorder(height: int, width: int) -> Iterator[tuple[int, int]]:
    return iter(sorted(_raster(height, width), key=lambda place: _morton(*place)))


def _morton(i: int, j: int) -> int:
    bits = max(i.bit_length(), j.bit_length())
    return sum((i >> n & 1) << (2 * n + 1) | (j >> n & 1) << (2 * n) for n in range(bits))


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _same(grid: Tensor) -> Tensor:
    return grid


def _transposed(grid: Tensor) -> Tensor:
    return grid.t()


def _turned_left(grid: Tensor) -> Tensor:
    return torch.rot90(grid)


def _turned_right(grid: Tensor) -> Tensor:
    return torch.rot90(grid, -1)


def _upside_down(grid: Tensor) -> Tensor:
    return grid.flip(0)


def _mirrored(grid: Tensor) -> Tensor:
    return grid.flip(1)


_ORDERS: dict[str, Callable[[int, int], Iterator[tuple[int, int]]]] = {
    "raster": _raster,
    "boustrophedon": _boustrophedon,
    "zorder": _zorder,
    "zigzag": _zigzag,
    "hilbert": hilbert_positions,
}
ORDER_NAMES = tuple(_ORDERS)

# An order read backwards is often the same order on a mirrored or half-turned map.  Each tuple
# holds one map of every such pair.
_DEFAULT_TURNS = (_same, _transposed, _turned_left, _upside_down)
_TURNS = {"boustrophedon": (_same, _transposed, _turned_right, _mirrored)}


@lru_cache(maxsize=64)
def _order(name: str, height: int, width: int) -> Tensor:
    """The table itself, shared by all callers: never change it in place."""
    # The device is stated so that a cached table never belongs to a surrounding device context.
    return torch.tensor([i * width + j for i, j in _ORDERS[name](height, width)], device="cpu")


def _check(name: str, height: int, width: int) -> None:
    if name not in _ORDERS:
        raise ConfigError(f"name: expected one of {ORDER_NAMES}, got {name!r}")
    for field, value in (("height", height), ("width", width)):
        if value < 1:
            raise ConfigError(f"{field}: expected at least 1, got {value}")
