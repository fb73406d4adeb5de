"""Thresholds of the classes, each with what it guarantees and from what.

Rule (our choice). Enough held-out images for the wished rate: the conformal threshold, valid for
any distribution. Too few: the higher of the largest held-out score and the limit of `assumed.py`.
So the false-alarm rate is guaranteed to be at most 1 / (n + 1) on average, which is all that n
images can guarantee, and is the wished one if relative scores are roughly normal, which nobody
guarantees. `kind` says which of the two it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mambaadv2.calibrate.assumed import assumed_limits
from mambaadv2.calibrate.conformal import (
    LEVEL,
    at_most,
    false_alarm_bound,
    false_alarm_range,
    largest_rank,
    shortage,
)
from mambaadv2.calibrate.suspects import FEWEST, SHARE, suspects
from mambaadv2.errors import ConfigError

FALSE_ALARM_RATE = 0.01

Kind = Literal["conformal", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCalibration:
    """Threshold of one class and what it promises.

    threshold: raw score units; an image is flagged above it. images: held-out good images in all.
    kind: "conformal" when the wished rate is guaranteed, "assumed" when the images were too few.
    rate: wished share of flagged good images. confidence: None when the rate is to hold on average
    over calibration sets, else the share of sets for which it is to hold.
    rank: the threshold is at or above the rank-th largest score that was kept.
    trimmed: positions, among the held-out images, of those left out because they look mislabelled.
    trim: whether such would be left out.
    leave_one_out: whether the scorer was fitted on the same images, each being scored by the
    others' share. Then "guaranteed" is what holds as far as one image hardly changes the scorer; of
    such scores nothing can be proved without that (`crossed` says why).
    """

    threshold: float
    images: int
    kind: Kind
    rate: float
    confidence: float | None = None
    rank: int
    trimmed: tuple[int, ...] = ()
    trim: bool = True
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= self.kept:
            raise ConfigError(
                f"rank: expected 1 to {self.kept}, the number of images kept, got {self.rank}"
            )

    @property
    def kept(self) -> int:
        """Images behind the threshold."""
        return self.images - len(self.trimmed)

    @property
    def guaranteed(self) -> float:
        """Expected share of good images flagged, at most, where no good image looks mislabelled."""
        return self.rank / (self.kept + 1)

    @property
    def guaranteed_for_any_scores(self) -> float:
        """The same for good images of any scores, such as look mislabelled included.

        Whether images are left out depends on the scores, so this counts as if as many as may be
        always were: the threshold is at least the largest score but that many and the rank.
        """
        most = int(SHARE * self.images) if self.trim and self.images >= FEWEST else 0
        rank = largest_rank(self.images, self.rate, confidence=self.confidence) or 1
        return (rank + most) / (self.images + 1)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """False-alarm rates that such a calibration may have, `level` of all sets inside.

        An assumed threshold may lie anywhere above the largest score, so its low end is 0.
        """
        if self.kind == "assumed":
            return 0.0, false_alarm_bound(self.kept, self.rank, confidence=level)
        return false_alarm_range(self.kept, self.rank, level=level)

    @property
    def sentence(self) -> str:
        """What the threshold promises, for people; a whole sentence."""
        low, high = (f"{100 * end:.2g} %" for end in self.interval())
        images = f"{self.kept} held-out good image{'s' if self.kept != 1 else ''}"
        sure = f"on average at most {at_most(self.guaranteed)} of good images are flagged"
        if self.kind == "assumed":
            lack = shortage(self.kept, self.rate, confidence=self.confidence)
            text = f"{100 * self.rate:g} % is assumed, not guaranteed: {lack}. "
            sure += f", and with {100 * LEVEL:g} % confidence at most {at_most(self.interval()[1])}"
        else:
            text = ""
            if self.confidence is not None:
                sure = (
                    f"at most {100 * self.rate:g} % of good images are flagged, with "
                    f"{100 * self.confidence:g} % confidence"
                )
            sure += f"; {100 * LEVEL:g} % range {low} to {high}"
        if self.leave_one_out:
            text += (
                f"By {images}, each scored by the statistics of the others: {sure}. This is proved "
                "for images that had no part in the statistics, and near for these."
            )
        else:
            text += f"Guaranteed from {images}: {sure}."
        if self.guaranteed_for_any_scores > self.guaranteed:
            text += (
                " Good images that look mislabelled would be left out; counting those as well, the "
                f"average is at most {at_most(self.guaranteed_for_any_scores)}."
            )
        if self.trimmed:
            one = len(self.trimmed) == 1
            text += (
                f" {len(self.trimmed)} image{'' if one else 's'} look{'s' if one else ''} "
                f"mislabelled and {'was' if one else 'were'} left out."
            )
        return text


def calibrate_classes(
    scores: Mapping[str, Sequence[float]],
    *,
    rate: float = FALSE_ALARM_RATE,
    confidence: float | None = None,
    trim: bool = True,
    leave_one_out: bool = False,
) -> dict[str, ClassCalibration]:
    """Threshold per class from the raw image scores of held-out normal images.

    scores: class name to scores, >= 0, at least one each and not all 0. rate: wished share of
    flagged good images. confidence: as in `largest_rank`. trim: leave out images that look
    mislabelled (`suspects`). leave_one_out: as of `ClassCalibration`. Raises `ConfigError` for
    other scores and for a bad rate.
    """
    trimmed = {
        name: suspects(sample) if trim and _usable(sample) else ()
        for name, sample in scores.items()
    }
    kept = {
        name: [value for i, value in enumerate(sample) if i not in trimmed[name]]
        for name, sample in scores.items()
    }
    ranks = {
        name: largest_rank(len(sample), rate, confidence=confidence)
        for name, sample in kept.items()
    }
    limits = assumed_limits(kept, rate)
    calibrated: dict[str, ClassCalibration] = {}
    for name, sample in kept.items():
        rank = ranks[name]
        known = sorted(sample, reverse=True)
        threshold = float(known[rank - 1]) if rank else max(float(known[0]), limits[name])
        # Most scores may be equal to 0; a threshold must be above it to divide maps by.
        threshold = threshold if threshold > 0 else min(v for v in known if v > 0)
        calibrated[name] = ClassCalibration(
            threshold=threshold,
            images=len(scores[name]),
            kind="conformal" if rank else "assumed",
            rate=rate,
            confidence=confidence,
            rank=rank or 1,
            trimmed=trimmed[name],
            trim=trim,
            leave_one_out=leave_one_out,
        )
    return calibrated


def _usable(sample: Sequence[float]) -> bool:
    """Whether `suspects` can read it; what cannot be used is refused by `assumed_limits`."""
    array = np.asarray(sample, dtype=np.float64)
    return bool(np.all(np.isfinite(array)) and np.all(array >= 0))
