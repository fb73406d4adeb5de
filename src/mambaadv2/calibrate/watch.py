"""Drift over all classes together and in each one, with one bound on all false alarms.

What changes the camera moves the scores of all classes; a new batch of one product moves those of
one, and among ten others that is diluted. So there is a watch over the whole stream and one for
each class. The allowed chance of a false alarm is shared out, half to the whole and half among the
classes, so that by the union bound the chance of *any* false alarm is at most delta (our choice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mambaadv2.calibrate.drift import FALSE_ALARM, DriftWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftAlarm:
    """What changed: the one class, or None for the stream of all; says: in which direction."""

    class_name: str | None
    says: str


class StreamWatch:
    """A `DriftWatch` over a stream of several classes, and one for each of them.

    calibration: the classes and the scores to compare with, as of `DriftWatch`; images of other
    classes count for the whole stream alone. delta: chance that any of the watches ever gives a
    false alarm, at most. defects: as of `DriftWatch`.

    >>> watch = StreamWatch({"bolt": [1.0, 1.1], "nut": []}, delta=0.01)
    >>> watch.add("bolt", 1.05)
    []
    """

    def __init__(
        self,
        calibration: Mapping[str, Sequence[float]],
        *,
        delta: float = FALSE_ALARM,
        defects: float = 0.0,
    ) -> None:
        several = len(calibration) > 1
        self.delta = delta
        self._all = DriftWatch(calibration, delta=delta / 2 if several else delta, defects=defects)
        self._classes = {
            # Another seed for each: they rank the same scores, and need not split ties alike.
            name: DriftWatch(
                {name: scores}, delta=delta / 2 / len(calibration), defects=defects, seed=seed
            )
            for seed, (name, scores) in enumerate(calibration.items(), start=1)
            if several
        }

    @property
    def seen(self) -> int:
        """Images so far."""
        return self._all.seen

    def add(self, name: str, score: float) -> list[DriftAlarm]:
        """Take in the next image's class and raw score; returns the alarms that it sets off.

        Every watch gives one alarm at most.
        """
        alarms: list[DriftAlarm] = []
        state = self._all.add(name, score)
        if state.alarm_at == self._all.seen:
            alarms.append(DriftAlarm(class_name=None, says=state.says))
        own = self._classes.get(name)
        if own is not None and (state := own.add(name, score)).alarm_at == own.seen:
            alarms.append(DriftAlarm(class_name=name, says=state.says))
        return alarms
