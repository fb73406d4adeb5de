"""Curves with few points: exact where they are seen, whatever the number of scores behind them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Curve = tuple[tuple[float, float], ...]
"""Points (x, y), both 0..1, x rising."""

COLUMNS = 500  # a chart is narrower in pixels


def reach(
    left: NDArray[np.float64], right: NDArray[np.float64], limit: float
) -> NDArray[np.float64]:
    """Area that a pixel adds below a curve up to the false positive rate `limit`.

    It lifts the curve along a straight ramp over the good ones that tie with it, from the rate
    `left` to `right`, and stays lifted.

    >>> reach(np.array([0.1, 0.1, 0.4]), np.array([0.1, 0.5, 0.4]), 0.3).round(3).tolist()
    [0.2, 0.05, 0.0]
    """
    whole = np.clip(limit - (left + right) / 2, 0.0, None)
    cut = np.clip(limit - left, 0.0, None) ** 2 / (2 * np.maximum(right - left, 1e-300))
    area: NDArray[np.float64] = np.where(right <= limit, whole, cut)
    return area


def thinned(x: NDArray[np.floating], y: NDArray[np.floating]) -> list[tuple[float, float]]:
    """The points that show: of each of `COLUMNS` columns the first, lowest, highest and last.

    x: (N,) in 0..1, not falling. y: (N,). Repeated points are left out; the order stays.

    >>> thinned(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.5, 0.9, 1.0]))
    [(0.0, 0.0), (0.0, 0.9), (1.0, 1.0)]
    """
    column = np.floor(x * COLUMNS)
    starts = np.flatnonzero(np.concatenate(([True], column[1:] != column[:-1])))
    kept: list[tuple[float, float]] = []
    for start, end in zip(starts, [*starts[1:], x.size], strict=True):
        part = y[start:end]
        chosen = {start, start + int(part.argmin()), start + int(part.argmax()), end - 1}
        for at in sorted(chosen):
            point = (float(x[at]), float(y[at]))
            if not kept or point != kept[-1]:
                kept.append(point)
    return kept
