"""How many good test images may have a low p-value when nothing but chance is at work.

Let a class have n held-out good images and m good test images, all exchangeable and without ties.
The share of all good images that have a p-value of at most k / (n + 1) is then a Beta(k, n + 1 - k)
number, drawn once by the choice of the held-out images; so the count among the m is beta-binomial
(Vovk 2012; our derivation of the test's side). A binomial band would take the held-out images for
infinitely many. Counts of several classes are independent: their sum has the convolution of their
distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambaadv2.results import LEVEL, ImageResult

BAND = LEVEL
_SMALLEST = 1e-12  # a p-value is a fraction k / (n + 1) that has been through floating point


@dataclass(frozen=True, slots=True)
class Judged:
    """Good test images that were ranked among the same held-out images."""

    p_values: NDArray[np.float64]
    """(m,), rising."""
    held_out: int
    """n, at least 1."""

    def rank(self, level: float) -> int:
        """The largest k with k / (n + 1) <= level, 0 for none."""
        return int(np.floor(level * (self.held_out + 1) + 1e-9))

    def counted(self, level: float) -> int:
        """Images with a p-value of at most the level."""
        return int(np.searchsorted(self.p_values, level + _SMALLEST, side="right"))


def judged(images: Iterable[ImageResult], held_out: dict[str, int]) -> list[Judged]:
    """The good images with a p-value, by the class whose held-out images they were ranked among.

    held_out: their numbers by class; images judged by another class are left out.
    """
    by_class: dict[str, list[float]] = {}
    for image in images:
        if not image.defect and image.p_value is not None and held_out.get(image.found_class):
            by_class.setdefault(image.found_class, []).append(image.p_value)
    return [Judged(np.sort(values), held_out[name]) for name, values in by_class.items()]


def levels(groups: Sequence[Judged], most: int) -> list[float]:
    """P-values that can occur, rising; at most `most` of them, spread evenly by their logarithm."""
    ranks = {k / (g.held_out + 1) for g in groups for k in range(1, g.held_out + 2)}
    every = np.array(sorted(ranks))
    if len(every) > most:
        wanted = np.geomspace(every[0], 1.0, most)
        every = np.unique(every[np.minimum(np.searchsorted(every, wanted), len(every) - 1)])
    return [float(level) for level in every]


def count_range(groups: Sequence[Judged], level: float) -> tuple[int, int]:
    """Between which numbers the images with a p-value of at most `level` lie, with chance `BAND`.

    Each side is missed with a chance of at most (1 - BAND) / 2.

    >>> count_range([Judged(np.ones(40), 19)], 0.05)
    (0, 8)
    """
    chances = _distribution(groups, level)
    tail = (1 - BAND) / 2
    total = np.cumsum(chances)
    low = int(np.searchsorted(total, tail, side="right"))
    high = int(np.searchsorted(total, 1 - tail - 1e-12))
    return low, min(high, len(chances) - 1)


def _distribution(groups: Sequence[Judged], level: float) -> NDArray[np.float64]:
    """(M + 1,) chances of 0 .. M images in all."""
    total = sum(len(group.p_values) for group in groups)
    size = 2 ** total.bit_length()  # above the total, so that nothing wraps round
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for group in groups:
        spectrum *= np.fft.rfft(_chances(group, level), size)
    found: NDArray[np.float64] = np.clip(np.fft.irfft(spectrum, size)[: total + 1], 0.0, 1.0)
    return found


def _chances(group: Judged, level: float) -> NDArray[np.float64]:
    """(m + 1,) of one group: beta-binomial, in logarithms for large numbers."""
    from scipy.special import betaln, gammaln

    m, n, k = len(group.p_values), group.held_out, group.rank(level)
    chances = np.zeros(m + 1)
    if k == 0 or k >= n + 1:
        chances[0 if k == 0 else m] = 1.0
        return chances
    count = np.arange(m + 1)
    choose = gammaln(m + 1) - gammaln(count + 1) - gammaln(m - count + 1)
    logs = choose + betaln(count + k, m - count + n + 1 - k) - betaln(k, n + 1 - k)
    return np.asarray(np.exp(logs), dtype=np.float64)
