"""What `scripts/bench calibrate` compares: rules for a threshold, shapes of scores, simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mambaadv2.calibrate import (
    DriftWatch,
    LabelledScores,
    calibrate_classes,
    cross_p_values,
    p_values,
    threshold_for_f1,
)

Array = NDArray[np.float64]
RATE = 0.01
SURE = 0.95
SIGMA = "mean + 3 sigma"
RIGHT = 0.9  # share of defects above the threshold that the true distribution would give


def ours(scores: Array) -> float:
    return calibrate_classes({"": scores.tolist()}, rate=RATE)[""].threshold


def ours_sure(scores: Array) -> float:
    return calibrate_classes({"": scores.tolist()}, rate=RATE, confidence=SURE)[""].threshold


OURS, OURS_SURE = "ours", "ours, 95 % sure"
RULES: Mapping[str, Callable[[Array], float]] = {
    "maximum": lambda scores: float(scores.max()),
    SIGMA: lambda scores: float(scores.mean() + 3 * scores.std(ddof=1)),
    "99 % quantile": lambda scores: float(np.quantile(scores, 1 - RATE)),
    OURS: ours,
    OURS_SURE: ours_sure,
}
"""From the scores of held-out good images alone."""
F1 = "F1 on test"


def f1_threshold(good: Array, bad: Array) -> float:
    """The threshold of the best F1 of the images that it is then measured on."""
    truth = np.arange(len(good) + len(bad)) >= len(good)
    # The library would refuse the name "test"; that this rule uses it is what is measured here.
    found = LabelledScores(scores=np.concatenate([good, bad]), defects=truth, split="measured")
    return threshold_for_f1(found).threshold


@dataclass(frozen=True, slots=True)
class Shape:
    """Scores of good images, and the share of defects, three times as high, that hide in them."""

    good: Any
    """A frozen scipy distribution."""
    hidden: float = 0.0

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        scores = np.maximum(self.good.rvs(count, random_state=rng), 0.01)
        found: Array = scores * np.where(rng.random(count) < self.hidden, 3.0, 1.0)
        return found

    @property
    def shift(self) -> float:
        """How much higher a defect scores than a good image."""
        return float(self.good.ppf(1 - RATE) - self.good.ppf(1 - RIGHT))


SHAPES = {
    "normal": Shape(stats.norm(3, 0.3)),
    "skewed": Shape(stats.gumbel_r(3, 0.25)),
    "heavy tails": Shape(stats.t(3, 3, 0.2)),
    "normal, 2 % mislabelled": Shape(stats.norm(3, 0.3), hidden=0.02),
}
SIZES = (10, 20, 32, 50, 75, 99, 125, 150, 198, 199, 250, 298, 299, 350, 400, 450, 500, 1000, 2000)


def thresholds(shape: Shape, images: int, sets: int, seed: int) -> dict[str, dict[str, float]]:
    """By rule: rate of false alarms on average and at the worst twentieth of sets, and recall.

    The shares beyond a threshold are exact, so that only the calibration sets are random.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in (*RULES, F1)}
    claimed: list[float] = []
    for _ in range(sets):
        scores = shape.draw(rng, images)
        for name, rule in RULES.items():
            found[name].append(rule(scores))
        good, bad = shape.draw(rng, images), shape.draw(rng, images) + shape.shift
        found[F1].append(f1_threshold(good, bad))
        claimed.append(float((good > found[F1][-1]).mean()))
    rows = {}
    for name, values in found.items():
        alarms = shape.good.sf(values)
        rows[name] = {
            "false_alarms": float(alarms.mean()),
            "false_alarms_worst_twentieth": float(np.quantile(alarms, 0.95)),
            "recall": float(shape.good.sf(np.array(values) - shape.shift).mean()),
        }
    rows[F1]["false_alarms_on_its_own_test"] = float(np.mean(claimed))
    return rows


def leave_one_out(images: int, rate: float, sets: int, dims: int = 6) -> dict[str, float]:
    """Share of good images with p <= rate, when whitening and p-values use the same images.

    Squared Mahalanobis distances of correlated, heavy-tailed vectors, with a little shrinkage.
    "own share": everything by the statistics of all. "jackknife": leave-one-out scores against the
    new image under the statistics of all, which is what training does. "jackknife+": proved.
    """
    rng = np.random.default_rng(images)
    points = rng.standard_t(5, (sets, images + 1, dims)) @ rng.normal(size=(dims, dims))
    known, new = points[:, :images], points[:, images]
    everything = _distances(known, points)
    own = np.empty((sets, images))
    fresh = np.empty((sets, images))
    for i in range(images):
        both = _distances(np.delete(known, i, axis=1), points[:, [i, images]])
        own[:, i], fresh[:, i] = both[:, 0], both[:, 1]
    folds = np.arange(images)
    found: dict[str, list[float]] = {"own share": [], "jackknife": [], "jackknife+": []}
    for s in range(len(new)):
        found["own share"].append(float(p_values(everything[s, :images], everything[s, images])))
        found["jackknife"].append(float(p_values(own[s], everything[s, images])))
        found["jackknife+"].append(float(cross_p_values(own[s], folds, fresh[s : s + 1])[0]))
    # A p-value of (m + 1) / (n + 1) that is meant to be the rate, whatever its last bit.
    return {name: float(np.mean(np.array(p) <= rate + 1e-12)) for name, p in found.items()}


def _distances(known: Array, points: Array) -> Array:
    """(s, m): of (s, m, d) points from the mean and covariance of (s, n, d) known ones."""
    mean = known.mean(axis=1, keepdims=True)
    centred = known - mean
    covariance = np.einsum("sni,snj->sij", centred, centred) / known.shape[1]
    trace = np.trace(covariance, axis1=1, axis2=2)[:, None, None]
    dims = known.shape[2]
    inverse = np.linalg.inv(covariance + 0.05 * trace / dims * np.eye(dims))
    offset = points - mean
    found: Array = np.einsum("smi,sij,smj->sm", offset, inverse, offset)
    return found


def drift(sets: int, length: int, delta: float, repeats: int = 20) -> dict[str, Any]:
    """False alarms of an unchanged stream, and images until a change is seen (median)."""
    shape, held = SHAPES["normal"], 32
    alarms = 0
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        watch = DriftWatch({"": shape.draw(rng, held).tolist()}, delta=delta, seed=seed)
        for score in shape.draw(rng, length):
            watch.add("", float(score))
        alarms += watch.alarm_at is not None
    delays: dict[str, dict[str, float | None]] = {}
    for sigmas in (0.5, 1.0, 2.0, 5.0):
        row: dict[str, float | None] = {}
        for before in (0, 100, 1000):
            seen = [_delay(shape, held, before, 0.3 * sigmas, seed) for seed in range(repeats)]
            middle = float(np.median(seen))
            row[str(before)] = middle if np.isfinite(middle) else None
        delays[f"{sigmas:g}"] = row
    return {
        "held_out": held,
        "streams": sets,
        "length": length,
        "delta": delta,
        "streams_with_a_false_alarm": alarms,
        "median_images_until_alarm_by_sigmas_and_images_before": delays,
    }


def _delay(shape: Shape, held: int, before: int, change: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    watch = DriftWatch({"": shape.draw(rng, held).tolist()}, seed=seed)
    for score in shape.draw(rng, before):
        watch.add("", float(score))
    for score in shape.draw(rng, 1000) + change:
        if watch.add("", float(score)).alarm_at is not None:
            break
    return np.inf if watch.alarm_at is None else max(0, watch.alarm_at - before)
