"""Curves with few points: exact where they are seen, whatever the number of scores behind them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Curve = tuple[tuple[float, float], ...]
"""Points (x, y), both 0..1, x rising."""

COLUMNS = 500  # a chart is narrower in pixels


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
