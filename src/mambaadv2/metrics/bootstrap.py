"""Confidence intervals by resampling images, whatever their order and whoever counted them.

The Poisson bootstrap (Hanley and MacInnes 2006; Chamandy et al. 2012): in each replicate an image
counts 0, 1, 2 ... times with the probabilities of a Poisson number of mean 1, which is what drawing
n of n with replacement comes to. The numbers are a hash of the seed, the replicate and the image's
key, so no worker need know what another draws, and the same image has the same weights in two runs:
differences between runs are paired.

Intervals are BCa (Efron 1987): percentiles of the replicates, moved for bias and for skewness. The
skewness comes from a jackknife that leaves out one of `groups` parts of the images at a time, the
part again by hash. Images are drawn whole, so pixels of one image may be as alike as they like.

What it cannot know: a metric that is perfect in every replicate has an interval of no width. That
says that no image tested was out of order, not that none could be.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MASK = 2**64 - 1
_MOST = 20  # a Poisson number of mean 1 is larger once in 10^19 times


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How often and from which seed images are drawn again."""

    seed: int = 0
    """0 .. 2^64 - 1."""
    replicates: int = 1000
    """At least 1; 1000 place the ends of a 95 % interval within about 0.1 standard errors."""
    groups: int = 50
    """Parts of the jackknife, at least 2."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MASK:
            raise ValueError(f"seed must be 0 to 2^64 - 1; got {self.seed}")
        if self.replicates < 1:
            raise ValueError(f"replicates must be at least 1; got {self.replicates}")
        if self.groups < 2:
            raise ValueError(f"groups must be at least 2; got {self.groups}")

    def weights(self, images: NDArray[np.uint64], rows: range | None = None) -> NDArray[np.float64]:
        """How often each image is drawn in each replicate, (replicates, N).

        images: (N,), of `image_key`. rows: of these replicates alone.

        >>> Resampling(replicates=8).weights(np.array([image_key("screw/1.png")]))[:, 0]
        array([1., 0., 2., 0., 2., 1., 0., 0.])
        """
        wanted = range(self.replicates) if rows is None else rows
        counters = np.array(wanted, dtype=np.uint64)[:, None] + np.uint64(1)
        drawn = self._draw(images, counters)
        return np.searchsorted(_POISSON, drawn, side="right").astype(np.float64)

    def groups_of(self, images: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The part of the jackknife to which each image belongs, (N,), 0 .. groups - 1."""
        drawn = self._draw(images, np.uint64(0)) % np.uint64(self.groups)
        return drawn.astype(np.int64)

    def _draw(
        self, images: NDArray[np.uint64], counter: NDArray[np.uint64] | np.uint64
    ) -> NDArray[np.uint64]:
        start = _mixed(images ^ _mixed(np.array([self.seed], dtype=np.uint64)))
        return _mixed(start + counter * np.uint64(_GOLDEN))


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a metric lies, had other images of the same kind been tested."""

    low: float
    high: float
    level: float
    """Share of such intervals that hold the true value, for example 0.95."""
    replicates: int
    """That had a value; without a defect or a good image one has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A metric with its replicates."""

    value: float
    replicates: NDArray[np.float64]
    """(R,), NaN where undefined."""
    left_out: NDArray[np.float64]
    """(G,), the metric without each part of the images, NaN where undefined."""

    def interval(self, level: float = 0.95) -> Interval:
        """The BCa interval; `level` between 0 and 1. NaN at both ends if no replicate has a value.

        >>> rng = np.random.default_rng(0)
        >>> normal = Sampled(0.5, 0.5 + 0.1 * rng.standard_normal(4000), np.linspace(0.49, 0.51, 9))
        >>> found = normal.interval()
        >>> round(found.low, 1), round(found.high, 1)
        (0.3, 0.7)
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        drawn = np.sort(self.replicates[np.isfinite(self.replicates)])
        if not drawn.size or not math.isfinite(self.value):
            return Interval(math.nan, math.nan, level, int(drawn.size))
        if drawn[0] == drawn[-1]:
            return Interval(float(drawn[0]), float(drawn[0]), level, int(drawn.size))
        low, high = np.quantile(drawn, self._shares(drawn, level))
        return Interval(float(low), float(high), level, int(drawn.size))

    def _shares(self, drawn: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        from scipy.special import ndtr, ndtri

        below = np.searchsorted(drawn, self.value, "left")
        not_above = np.searchsorted(drawn, self.value, "right")
        # Half a replicate of doubt keeps a value at the edge from moving the ends to infinity.
        share = np.clip((below + not_above) / 2, 0.5, drawn.size - 0.5) / drawn.size
        bias = ndtri(share)
        left = self.left_out[np.isfinite(self.left_out)]
        pulls = left.mean() - left if left.size else left
        spread = float((pulls**2).sum())
        skew = float((pulls**3).sum()) / (6 * spread**1.5) if spread else 0.0
        ends = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
        # Beyond 1 / skew the correction turns round; that far out only the outermost is left.
        stretched = ends / np.maximum(1 - skew * ends, 1e-3)
        shares: NDArray[np.float64] = ndtr(bias + stretched)
        return shares


def mean_sampled(parts: Sequence[Sampled]) -> Sampled:
    """The mean of metrics with its replicates: of one class's seven, or of one metric's classes.

    All must come from one `Resampling`. Replicates in which one of them is undefined are too.
    """
    if not parts:
        raise ValueError("a mean needs at least one metric; got none")
    return Sampled(
        math.fsum(part.value for part in parts) / len(parts),
        np.mean([part.replicates for part in parts], axis=0),
        np.mean([part.left_out for part in parts], axis=0),
    )


def difference(first: Sampled, second: Sampled) -> Sampled:
    """First minus second, paired: both of the same images, keys and `Resampling`."""
    return Sampled(
        first.value - second.value,
        first.replicates - second.replicates,
        first.left_out - second.left_out,
    )


def image_key(key: str) -> np.uint64:
    """A number for an image's name, the same everywhere; two names share one 1 in 2^64 times.

    >>> int(image_key("screw/test/good/000.png"))
    15638404112248072007
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def _poisson_limits() -> NDArray[np.uint64]:
    """2^64 times the chance of 0, of at most 1, ...; as many as a draw is not below are counted."""
    chances = [math.exp(-1) / math.factorial(count) for count in range(_MOST)]
    sums = [math.fsum(chances[: count + 1]) for count in range(_MOST)]
    return np.array([min(int(total * 2**64), _MASK) for total in sums], dtype=np.uint64)


_POISSON = _poisson_limits()
