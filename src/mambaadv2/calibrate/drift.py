"""Has something changed? A watch over a stream of scores, with a bound on its false alarms.

Each score is ranked among all scores of its class *so far*, the held-out ones first: a smoothed
conformal p-value. While the stream goes on as it began (exchangeable within each class), these are
independent and uniform, however few the held-out images are (Vovk, Nouretdinov and Gammerman,
"Testing exchangeability on-line", 2003). Ranks among a *fixed* calibration set are not independent:
a set that lies a little low by chance would make any such watch cry in the end.

A gambler bets against uniformity. Each of `_BETS` has an expectation of 1 when p is uniform, and
the capital is spread over bets and over starting times k with weights 1 / (k (k + 1)), what has not
started being kept as cash:

    A_t = (A_{t-1} + w_t) f(p_t),   M_t = mean over bets of A_t + 1 / (t + 1)

(a mixture of martingales, our choice of mixture; it costs a change at time k a factor of k (k + 1),
that is, a delay that grows with log k only). M is a martingale that starts at 1, so by Ville's
inequality P(M ever reaches 1 / delta) <= delta: the chance of any false alarm, however long the
stream.

Scores are rounded to 512 steps in each doubling (0.14 %), a grid that no data chose; ties that
arise are split by a seeded uniform number, so nothing is lost but that resolution, and the state
stays a small table of counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mambaadv2.errors import ConfigError

FALSE_ALARM = 0.001
_STEPS = 512  # of the grid, for each doubling of the score
_ZERO = -(2**31)  # the grid's place of the score 0
_SCHEMA = 1
_MEMORY = 0.95  # of the running means that name an alarm: some 20 images
_LEANING = 0.15


@dataclass(frozen=True, slots=True)
class _Bet:
    """f(p) = 1 + slope (1/2 - p) + bend (6 p^2 - 6 p + 1), >= 0 and of mean 1 over 0..1."""

    slope: float
    bend: float

    def __call__(self, p: float) -> float:
        return 1 + self.slope * (0.5 - p) + self.bend * (6 * p * p - 6 * p + 1)

    def price(self, defects: float) -> float:
        """Largest expectation of f when a share of images are defects; see `DriftWatch`."""
        grid = np.linspace(0, 1, 1001)
        most = max(self(float(p)) for p in grid)
        steepest = abs(self.slope) + 6 * abs(self.bend)
        return (1 - defects) * (1 + steepest * defects) + defects * most


# Scores rise, gently or strongly; fall; scatter more; scatter less.
_BETS = (
    _Bet(1.0, 0.0),
    _Bet(1.9, 0.0),
    _Bet(-1.0, 0.0),
    _Bet(-1.9, 0.0),
    _Bet(0.0, 0.9),
    _Bet(0.0, -0.9),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """After an image: its smoothed p-value in (0, 1], the capital M, and the alarm if any.

    alarm_at: number of the image, from 1, at which M first reached 1 / delta; None while it has
    not. says: what the latest p-values had in common then, such as "scores have risen"; "" without
    alarm.
    """

    p_value: float
    capital: float
    alarm_at: int | None
    says: str


class DriftWatch:
    """Watch a stream of raw image scores and say when it is no longer as it began.

    calibration: class name to scores of held-out good images, >= 0; a class may have none, it then
    learns from the stream alone. delta: chance of a false alarm in all eternity, at most, in
    (0, 1). defects: share of defects that the stream may have without an alarm, in [0, 0.5).
    seed: of the numbers that split ties.

    With `defects` 0 the bound is that of an exchangeable stream, in which defects that come more
    often than among the held-out images are a change too. With a share d each bet f is divided by
    (1 - d)(1 + L d) + d max f, L being its steepest slope. The bound then holds if good images are
    exchangeable, defects score above all of them, each image is a defect with a chance of at most d
    whatever came before, and at any time at most a share d of the class's images so far (held-out
    ones counted) were defects. (Defects among the earlier images move a good image's p-value by at
    most d, hence f by at most L d. Our derivation.) Defects that score like good images do no more
    in our simulations, but are not covered by the proof.

    The scores behind a model's threshold are leave-one-out scores of the images that its scorer was
    fitted on; they are not exactly exchangeable with later ones. Held-out images that the scorer
    has not seen are.

    >>> watch = DriftWatch({"bolt": [1.0, 1.1, 0.9]}, seed=1)
    >>> watch.add("bolt", 1.05).alarm_at is None
    True
    """

    def __init__(
        self,
        calibration: Mapping[str, Sequence[float]],
        *,
        delta: float = FALSE_ALARM,
        defects: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 < delta < 1:
            raise ConfigError(f"delta: expected a chance between 0 and 1, got {delta}")
        if not 0 <= defects < 0.5:
            raise ConfigError(f"defects: expected a share from 0 to below 0.5, got {defects}")
        if seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {seed}")
        self.delta, self.defects, self.seed = delta, defects, seed
        self.seen = 0
        self.alarm_at: int | None = None
        self._says = ""
        self._capitals = [0.0] * len(_BETS)
        self._recent = [0.0, 0.0]
        self._prices = [bet.price(defects) if defects else 1.0 for bet in _BETS]
        self._counts: dict[str, dict[int, int]] = {}
        for name, scores in calibration.items():
            counts = self._counts.setdefault(name, {})
            for score in scores:
                place = _place(score)
                counts[place] = counts.get(place, 0) + 1

    @property
    def capital(self) -> float:
        """M now; 1 at the start."""
        return math.fsum(self._capitals) + 1 / (self.seen + 1)

    def add(self, name: str, score: float) -> DriftState:
        """Take in the next image's class and raw score, >= 0; a new class begins its own ranks."""
        place = _place(score)
        counts = self._counts.setdefault(name, {})
        above = sum(count for other, count in counts.items() if other > place)
        equal = counts.get(place, 0) + 1
        total = sum(counts.values()) + 1
        self.seen += 1
        p = (above + _uniform(self.seed, self.seen) * equal) / total
        counts[place] = equal
        start = 1 / (self.seen * (self.seen + 1)) / len(_BETS)
        self._capitals = [
            # Far beyond any alarm; a product of thousands of bets would overflow.
            min((capital + start) * bet(p) / price, 1e300 / len(_BETS))
            for capital, bet, price in zip(self._capitals, _BETS, self._prices, strict=True)
        ]
        self._recent = [
            _MEMORY * mean + (1 - _MEMORY) * now
            for mean, now in zip(self._recent, (0.5 - p, 6 * p * p - 6 * p + 1), strict=True)
        ]
        if self.alarm_at is None and self.capital >= 1 / self.delta:
            self.alarm_at = self.seen
            self._says = _in_words(*self._recent)
        return DriftState(p_value=p, capital=self.capital, alarm_at=self.alarm_at, says=self._says)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON; `from_json` goes on from there to the last bit."""
        return {
            "schema_version": _SCHEMA,
            "delta": self.delta,
            "defects": self.defects,
            "seed": self.seed,
            "seen": self.seen,
            "alarm_at": self.alarm_at,
            "says": self._says,
            "capitals": self._capitals,
            "recent": self._recent,
            "counts": {
                name: sorted([place, count] for place, count in counts.items())
                for name, counts in self._counts.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DriftWatch:
        """The watch that `to_json` described. Raises `ConfigError` for anything else."""
        version = content.get("schema_version") if isinstance(content, Mapping) else None
        if version != _SCHEMA:
            raise ConfigError(
                f"schema_version: expected {_SCHEMA}, the state of a drift watch, got {version!r}"
            )
        try:
            watch = cls(
                {},
                delta=float(content["delta"]),
                defects=float(content["defects"]),
                seed=int(content["seed"]),
            )
            watch.seen = int(content["seen"])
            alarm = content["alarm_at"]
            watch.alarm_at = None if alarm is None else int(alarm)
            watch._says = str(content["says"])
            watch._capitals = [float(capital) for capital in content["capitals"]]
            lean, bend = content["recent"]
            watch._recent = [float(lean), float(bend)]
            watch._counts = {
                str(name): {int(place): int(count) for place, count in counts}
                for name, counts in content["counts"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"state of a drift watch: missing or wrong field ({error})"
            ) from error
        counts = [count for places in watch._counts.values() for count in places.values()]
        if watch.seen < 0 or min(counts, default=1) < 1:
            raise ConfigError(
                f"seen, counts: expected numbers of images, got {watch.seen} and {counts}"
            )
        if watch.alarm_at is not None and not 1 <= watch.alarm_at <= watch.seen:
            raise ConfigError(f"alarm_at: expected 1 to {watch.seen}, got {watch.alarm_at}")
        if len(watch._capitals) != len(_BETS) or not all(c >= 0 for c in watch._capitals):
            raise ConfigError(
                f"capitals: expected {len(_BETS)} numbers >= 0, got {watch._capitals}"
            )
        return watch


def _in_words(lean: float, bend: float) -> str:
    """What p-values of this mean of 1/2 - p and of 6 p^2 - 6 p + 1 say about the scores.

    One-sided p-values have both, so the first decides where it can. Only words: no guarantee.
    """
    if abs(lean) > _LEANING:
        return "scores have risen" if lean > 0 else "scores have fallen"
    return "scores scatter more" if bend > 0 else "scores scatter less"


def _place(score: float) -> int:
    """The place of a score on the grid."""
    if not 0 <= score < math.inf:
        raise ConfigError(f"score: expected a finite number >= 0, got {score}")
    return round(_STEPS * math.log2(score)) if score else _ZERO


def _uniform(seed: int, step: int) -> float:
    """A number in (0, 1) that depends on both alone, so that a resumed watch draws the same."""
    (word,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return (int(word >> np.uint64(11)) + 0.5) / 2**53
