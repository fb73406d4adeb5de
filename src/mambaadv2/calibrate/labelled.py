"""Thresholds where some defects are known: for F1, for a recall, for the least cost.

They are chosen on a validation split and never on the test split: a threshold chosen on the images
that it is then measured on looks better than it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mambaadv2.calibrate.conformal import finite_array
from mambaadv2.errors import ConfigError

_DECIMAL = r"\d{1,9}(?:\.\d{1,9})?|\.\d{1,9}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledScores:
    """Raw image scores of one class with their truth, from a split that has a name.

    scores: (n,) finite. defects: (n,) bool, at least one of each. split: where they come from, for
    example "validation"; a name with the word "test" in it is refused.
    """

    scores: NDArray[np.float64]
    defects: NDArray[np.bool_]
    split: str

    def __post_init__(self) -> None:
        if re.search(r"(?<![a-z])test", self.split.lower()) or not self.split.strip():
            raise ConfigError(
                f"split: expected the name of a split that nothing is measured on, such as "
                f"'validation', got {self.split!r}; a threshold chosen on test images makes their "
                "numbers worthless: set some defects and good images apart and choose it on those"
            )
        values, truth = finite_array("scores", self.scores), np.asarray(self.defects)
        if values.ndim != 1 or truth.shape != values.shape or truth.dtype != np.bool_:
            raise ConfigError(
                f"scores and defects: expected (n,) numbers and (n,) bool, got shapes "
                f"{values.shape} and {truth.shape} of {truth.dtype}"
            )
        if truth.all() or not truth.any():
            raise ConfigError(
                f"defects: expected at least one good image and one defect in {self.split!r}, got "
                f"{int(truth.sum())} defects of {len(truth)} images"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledThreshold:
    """A threshold, what it was chosen for, and what it gives on the split it was chosen on.

    threshold: an image is flagged above it. recall: share of the split's `defects` defects flagged.
    false_alarms: share of its `good` good images flagged. Both are of the images that chose it, so
    new images will do worse. guarantee: what is proved for new defects, as a sentence, or
    "".
    """

    threshold: float
    aim: str
    split: str
    defects: int
    good: int
    recall: float
    false_alarms: float
    guarantee: str = ""

    def __post_init__(self) -> None:
        texts = (self.aim, self.split, self.guarantee)
        counts, shares = (self.defects, self.good), (self.recall, self.false_alarms)
        if not (
            all(type(text) is str for text in texts)
            and all(type(count) is int and count > 0 for count in counts)
            and all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
        ):
            raise ConfigError(
                f"labelled threshold: expected texts {texts}, numbers above 0 {counts} and shares "
                f"from 0 to 1 {shares}"
            )

    @property
    def sentence(self) -> str:
        """How it was chosen and what that is worth, for people; a whole sentence."""
        found, flagged = round(self.recall * self.defects), round(self.false_alarms * self.good)
        text = (
            f"Chosen for {self.aim} on the split {self.split}: there it finds {found} of "
            f"{self.defects} defects and flags {flagged} of {self.good} good images, which is "
            "better than new images will do"
        )
        if self.guarantee:
            text += f"; {self.guarantee}"
        return f"{text}. No rate of false alarms is guaranteed."


def threshold_for_f1(labelled: LabelledScores) -> LabelledThreshold:
    """The threshold with the best F1 of the split; of several the lowest, which misses least."""
    n_defects = int(labelled.defects.sum())

    def loss(found: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
        return -2 * found / (found + alarms + n_defects)

    return _least(labelled, loss, "best F1")


def threshold_for_cost(
    labelled: LabelledScores, *, miss: float, false_alarm: float, defect_share: float | None = None
) -> LabelledThreshold:
    """The threshold with the least expected cost per image; of several the lowest.

    miss, false_alarm: costs of one missed defect and of one good image flagged, > 0, in any unit.
    defect_share: share of defects in production, in (0, 1); None takes that of the split, which is
    seldom production's. Raises `ConfigError` for others.
    """
    share = float(labelled.defects.mean()) if defect_share is None else defect_share
    if not (0 < miss < math.inf and 0 < false_alarm < math.inf):
        raise ConfigError(
            f"miss and false_alarm: expected costs above 0, got {miss} and {false_alarm}"
        )
    if not 0 < share < 1:
        raise ConfigError(f"defect_share: expected a share between 0 and 1, got {share}")
    n_defects = int(labelled.defects.sum())
    n_good = len(labelled.defects) - n_defects

    def loss(found: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
        missed = 1 - found / n_defects
        return share * miss * missed + (1 - share) * false_alarm * alarms / n_good

    aim = f"least cost at {miss:g} per miss, {false_alarm:g} per false alarm, {share:g} defects"
    return _least(labelled, loss, aim)


def threshold_for_recall(
    labelled: LabelledScores, recall: float, *, guarantee: bool = True
) -> LabelledThreshold:
    """The highest threshold that finds a share of all defects.

    recall: in (0, 1). guarantee: True chooses it so that a new defect, exchangeable with those of
    the split, is found with a chance of at least `recall` on average (split-conformal on the d
    defects: just below the floor((d + 1)(1 - recall))-th lowest), and raises `ConfigError` when the
    defects are too few for that; False takes the share among the split's own defects.
    """
    if not 0 < recall < 1:
        raise ConfigError(f"recall: expected a share between 0 and 1, got {recall}")
    known = np.sort(labelled.scores[labelled.defects])
    d, missing = len(known), 1 - Fraction(str(float(recall)))
    rank = math.floor((d + 1) * missing) if guarantee else math.floor(d * missing) + 1
    if rank < 1:
        raise ConfigError(
            f"recall: {100 * recall:g} % needs at least {math.ceil(1 / missing) - 1} defects in "
            f"{labelled.split!r}, you have {d}; ask for less, add defects, or in Python take "
            "threshold_for_recall with guarantee=False, which only looks at the defects you have"
        )
    threshold = float(np.nextafter(known[rank - 1], -np.inf))
    sentence = f"a new defect of these kinds is found with a chance of at least {recall:g}"
    return _made(
        labelled, threshold, f"recall {recall:g}", f"{sentence}, on average" if guarantee else ""
    )


def threshold_for_aim(labelled: LabelledScores, aim: str) -> LabelledThreshold:
    """The threshold for an aim in words, as the command line takes it.

    aim: "f1"; "recall=R", R in (0, 1), with the guarantee; "cost=C", a miss costing C times as much
    as a false alarm, with the split's share of defects; "cost=C,defects=D" with a share of D in
    production. Raises `ConfigError` for others, and as the functions behind it.

    >>> known = LabelledScores(
    ...     scores=np.array([1.0, 2.0, 3.0]), defects=np.array([False, False, True]), split="val"
    ... )
    >>> threshold_for_aim(known, "f1").threshold, threshold_for_aim(known, "cost=20").aim
    (2.5, 'least cost at 20 per miss, 1 per false alarm, 0.333333 defects')
    """
    require_aim(aim)
    kind, _, value = aim.partition("=")
    if kind == "recall":
        return threshold_for_recall(labelled, float(value))
    if kind == "cost":
        miss, _, share = value.partition(",defects=")
        return threshold_for_cost(
            labelled,
            miss=float(miss),
            false_alarm=1.0,
            defect_share=float(share) if share else None,
        )
    return threshold_for_f1(labelled)


def require_aim(aim: str) -> None:
    """Raise `ConfigError` unless `aim` is one of `threshold_for_aim`."""
    found = re.fullmatch(
        rf"f1|recall=(?P<recall>{_DECIMAL})|cost=(?P<cost>{_DECIMAL})(,defects=(?P<share>{_DECIMAL}))?",
        aim,
    )
    asked = {} if found is None else found.groupdict()
    shares = [float(asked[name]) for name in ("recall", "share") if asked.get(name)]
    costs = [float(asked["cost"])] if asked.get("cost") else []
    if found is None or not (all(0 < s < 1 for s in shares) and all(c > 0 for c in costs)):
        raise ConfigError(
            "aim: expected f1, recall=R with R between 0 and 1, or cost=C with the cost of a miss "
            "in false alarms, above 0, and if wished the share of defects in production, as in "
            f"cost=20,defects=0.002; got {aim!r}"
        )


def _least(
    labelled: LabelledScores,
    loss: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    aim: str,
) -> LabelledThreshold:
    """The lowest threshold of least loss(defects found, good images flagged), halfway between two.

    Between neighbouring scores all thresholds are equal on the split; the middle is farthest from
    both (our choice). Flagging everything and nothing are among the choices.
    """
    values = np.unique(labelled.scores)
    # Flagged: everything from values[i] on; at the end nothing.
    found = _at_least(labelled.scores[labelled.defects], values)
    alarms = _at_least(labelled.scores[~labelled.defects], values)
    best = int(np.argmin(loss(found, alarms)))
    if best == 0:
        threshold = float(np.nextafter(values[0], -np.inf))
    elif best == len(values):
        threshold = float(values[-1])
    else:
        threshold = float(values[best - 1] + (values[best] - values[best - 1]) / 2)
        if threshold >= values[best]:  # neighbours in floating point
            threshold = float(values[best - 1])
    return _made(labelled, threshold, aim)


def _at_least(scores: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.searchsorted(np.sort(scores), values, side="left")
    return np.append(len(scores) - below, 0).astype(np.float64)


def _made(
    labelled: LabelledScores, threshold: float, aim: str, guarantee: str = ""
) -> LabelledThreshold:
    flagged = labelled.scores > threshold
    return LabelledThreshold(
        threshold=threshold,
        aim=aim,
        split=labelled.split,
        defects=int(labelled.defects.sum()),
        good=int((~labelled.defects).sum()),
        recall=float(flagged[labelled.defects].mean()),
        false_alarms=float(flagged[~labelled.defects].mean()),
        guarantee=guarantee,
    )
