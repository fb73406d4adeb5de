"""The watch over several classes: finds what one class hides, and keeps to one bound."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats

from mambaadv2.calibrate import DriftWatch, StreamWatch

NAMES = tuple("abcdefgh")


def scores(rng: Generator, count: int, rise: float = 0.0) -> list[float]:
    return [float(v) for v in np.exp(0.2 * (rng.standard_normal(count) + rise))]


def test_a_stream_of_one_class_has_one_watch() -> None:
    rng = np.random.default_rng(0)
    held, stream = scores(rng, 30), [*scores(rng, 50), *scores(rng, 100, rise=3)]
    one, whole = DriftWatch({"a": held}, delta=0.001), StreamWatch({"a": held}, delta=0.001)
    found = [(i, a) for i, s in enumerate(stream, start=1) for a in whole.add("a", s)]
    for score in stream:
        state = one.add("a", score)
    assert [(i, a.class_name, a.says) for i, a in found] == [(state.alarm_at, None, state.says)]
    assert state.says == "scores have risen"
    assert whole.seen == len(stream)


def test_a_change_in_one_class_of_many_is_named() -> None:
    rng = np.random.default_rng(1)
    held = {name: scores(rng, 40) for name in NAMES}
    watch, found = StreamWatch(held), []
    for turn in range(120):
        for name in NAMES:
            (score,) = scores(rng, 1, rise=-3.0 if name == "c" and turn >= 20 else 0.0)
            found += [(turn, alarm) for alarm in watch.add(name, score)]
    assert {alarm.class_name for _, alarm in found} <= {None, "c"}
    turn, alarm = next(each for each in found if each[1].class_name == "c")
    assert 20 < turn < 60
    assert alarm.says == "scores have fallen"
    assert len(found) == len({alarm.class_name for _, alarm in found})  # each cries once


def test_a_change_in_all_classes_is_one_of_the_stream() -> None:
    rng = np.random.default_rng(2)
    watch, found = StreamWatch({name: scores(rng, 40) for name in NAMES}), []
    for turn in range(60):
        for name in NAMES:
            (score,) = scores(rng, 1, rise=2.0 if turn >= 20 else 0.0)
            found += [(turn, alarm) for alarm in watch.add(name, score)]
    turn, first = found[0]
    assert first.class_name is None
    assert 20 <= turn < 30


@pytest.mark.parametrize("held", [0, 10])
def test_all_watches_together_keep_to_the_bound(held: int) -> None:
    delta, runs, alarms = 0.2, 150, 0
    for run in range(runs):
        rng = np.random.default_rng((3, held, run))
        watch = StreamWatch({name: scores(rng, held) for name in "abc"}, delta=delta)
        names = rng.choice(list("abc"), 150)
        cried = [
            watch.add(name, score) for name, score in zip(names, scores(rng, 150), strict=True)
        ]
        alarms += any(cried)
    assert stats.binom.sf(alarms - 1, runs, delta) > 1e-6


def test_a_class_that_is_not_known_counts_for_the_stream() -> None:
    watch = StreamWatch({"a": [1.0], "b": [1.0]})
    assert watch.add("new", 1.0) == []
    assert watch.seen == 1
