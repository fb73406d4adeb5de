"""Thresholds with known defects: against trying every threshold, and never from a test split."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mambaadv2.calibrate import (
    LabelledScores,
    require_aim,
    threshold_for_aim,
    threshold_for_cost,
    threshold_for_f1,
    threshold_for_recall,
)
from mambaadv2.errors import ConfigError

RARE = 1e-6


def labelled(good: list[float], bad: list[float]) -> LabelledScores:
    truth = np.array([False] * len(good) + [True] * len(bad))
    return LabelledScores(scores=np.array([*good, *bad]), defects=truth, split="validation")


values = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=15)
EVERY = [-0.5, *(i / 2 for i in range(20))]


@given(values, values)
def test_f1_is_the_best_of_all_thresholds(good: list[float], bad: list[float]) -> None:
    def f1(threshold: float) -> float:
        found = sum(s > threshold for s in bad)
        return 2 * found / (found + sum(s > threshold for s in good) + len(bad))

    made = threshold_for_f1(labelled(good, bad))
    assert f1(made.threshold) == pytest.approx(max(map(f1, EVERY)))
    assert made.recall == sum(s > made.threshold for s in bad) / len(bad)
    assert made.false_alarms == sum(s > made.threshold for s in good) / len(good)
    assert (made.aim, made.split, made.guarantee) == ("best F1", "validation", "")


@given(values, values, st.sampled_from([1.0, 3.0, 50.0]), st.sampled_from([None, 0.01, 0.5]))
def test_cost_is_the_least_of_all_thresholds(
    good: list[float], bad: list[float], miss: float, share: float | None
) -> None:
    part = len(bad) / (len(bad) + len(good)) if share is None else share

    def cost(threshold: float) -> float:
        missed = sum(s <= threshold for s in bad) / len(bad)
        return part * miss * missed + (1 - part) * sum(s > threshold for s in good) / len(good)

    made = threshold_for_cost(labelled(good, bad), miss=miss, false_alarm=1.0, defect_share=share)
    assert cost(made.threshold) == pytest.approx(min(map(cost, EVERY)))
    # Of equals the lowest: no lower threshold costs as little.
    lower = [t for t in EVERY if t < made.threshold - 1]
    assert all(cost(t) >= cost(made.threshold) - 1e-12 for t in lower)


@given(values, values, st.sampled_from([0.1, 0.5, 0.8, 0.95]))
def test_recall_of_the_split_is_reached_as_high_as_it_can_be(
    good: list[float], bad: list[float], recall: float
) -> None:
    made = threshold_for_recall(labelled(good, bad), recall, guarantee=False)
    assert made.recall >= recall - 1e-12
    higher = math.nextafter(made.threshold, math.inf)
    assert sum(s > higher for s in bad) / len(bad) < recall
    assert made.guarantee == ""


@pytest.mark.parametrize("draw", ["normal", "ties"])
@pytest.mark.parametrize("defects, recall", [(9, 0.9), (20, 0.95), (50, 0.9), (200, 0.99)])
def test_a_guaranteed_recall_holds_for_new_defects(draw: str, defects: int, recall: float) -> None:
    repeats = 2000
    rng = np.random.default_rng(defects)
    shape = (repeats, defects + 1)
    drawn = rng.normal(size=shape) if draw == "normal" else rng.poisson(3, shape).astype(float)
    found = sum(
        row[0] > threshold_for_recall(labelled([0.0], row[1:].tolist()), recall).threshold
        for row in drawn
    )
    assert found >= stats.binom.ppf(RARE, repeats, recall)
    if draw == "normal":  # and no more than that is given away
        rank = math.floor((defects + 1) * (1 - recall) + 1e-9)
        assert found <= stats.binom.ppf(1 - RARE, repeats, 1 - rank / (defects + 1))


def test_too_few_defects_for_a_recall_say_so() -> None:
    with pytest.raises(ConfigError, match=r"99 % needs at least 99 defects in 'validation', .* 3"):
        threshold_for_recall(labelled([0.0], [1.0, 2.0, 3.0]), 0.99)
    made = threshold_for_recall(labelled([0.0], [1.0, 2.0, 3.0]), 0.99, guarantee=False)
    assert made.recall == 1.0
    assert (
        "at least 0.7, on average"
        in threshold_for_recall(labelled([0.0], [1.0, 2.0, 3.0]), 0.7).guarantee
    )


@pytest.mark.parametrize("split", ["test", "Test", "mvtec/test", "test_public", "TESTING", "", " "])
def test_a_test_split_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match=r"split: .*threshold chosen on test images"):
        LabelledScores(scores=np.zeros(2), defects=np.array([True, False]), split=split)


@pytest.mark.parametrize("split", ["validation", "latest", "contest-2"])
def test_other_splits_are_taken(split: str) -> None:
    assert (
        LabelledScores(scores=np.zeros(2), defects=np.array([True, False]), split=split).split
        == split
    )


@pytest.mark.parametrize(
    "scores, defects, words",
    [
        ([1.0, math.nan], [True, False], "scores: expected finite"),
        ([1.0], [True, False], r"scores and defects: expected \(n,\) numbers"),
        ([1.0, 2.0], [1, 0], "scores and defects"),
        ([[1.0, 2.0]], [[True, False]], "scores and defects"),
        ([1.0, 2.0], [True, True], "defects: expected at least one good image and one defect"),
        ([1.0, 2.0], [False, False], "defects: expected at least one good"),
    ],
)
def test_labels_that_do_not_fit_are_refused(scores: Any, defects: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelledScores(scores=np.array(scores), defects=np.array(defects), split="validation")


def test_impossible_wishes_are_refused() -> None:
    known = labelled([0.0], [1.0])
    with pytest.raises(ConfigError, match="miss and false_alarm"):
        threshold_for_cost(known, miss=0.0, false_alarm=1.0)
    with pytest.raises(ConfigError, match="defect_share"):
        threshold_for_cost(known, miss=1.0, false_alarm=1.0, defect_share=1.0)
    with pytest.raises(ConfigError, match="recall: expected"):
        threshold_for_recall(known, 1.0)


def test_neighbours_in_floating_point_are_told_apart() -> None:
    low = 1.0
    made = threshold_for_f1(labelled([low], [math.nextafter(low, 2.0)]))
    assert made.recall == 1.0
    assert made.false_alarms == 0.0


KNOWN = labelled([float(i) for i in range(30)], [25.5 + i for i in range(20)])


def test_an_aim_in_words_is_the_function_of_its_name() -> None:
    assert threshold_for_aim(KNOWN, "f1") == threshold_for_f1(KNOWN)
    assert threshold_for_aim(KNOWN, "recall=0.95") == threshold_for_recall(KNOWN, 0.95)
    assert threshold_for_aim(KNOWN, "recall=.9") == threshold_for_recall(KNOWN, 0.9)
    assert threshold_for_aim(KNOWN, "cost=20") == threshold_for_cost(
        KNOWN, miss=20.0, false_alarm=1.0
    )
    assert threshold_for_aim(KNOWN, "cost=2.5,defects=0.002") == threshold_for_cost(
        KNOWN, miss=2.5, false_alarm=1.0, defect_share=0.002
    )


@pytest.mark.parametrize(
    "aim",
    [
        *(
            "",
            "F1",
            "f1=1",
            "recall",
            "recall=",
            "recall=0",
            "recall=1",
            "recall=95%",
            "recall=nan",
        ),
        *("cost=0", "cost=-1", "cost=1e3", "cost=2,defects=", "cost=2,defects=1", "cost=2, f1"),
        "recall=0.9\n",
    ],
)
def test_an_aim_that_is_none_is_refused(aim: str) -> None:
    with pytest.raises(ConfigError, match=r"aim: expected f1, recall=R .*, or cost=C"):
        require_aim(aim)
    with pytest.raises(ConfigError, match="aim: expected"):
        threshold_for_aim(KNOWN, aim)


def test_the_sentence_says_what_was_seen_and_what_is_promised() -> None:
    made = threshold_for_aim(KNOWN, "recall=0.95")
    assert (made.defects, made.good) == (20, 30)
    assert made.sentence == (
        "Chosen for recall 0.95 on the split validation: there it finds 20 of 20 defects and flags "
        "4 of 30 good images, which is better than new images will do; a new defect of "
        "these kinds is found with a chance of at least 0.95, on average. No rate of false alarms "
        "is guaranteed."
    )
    assert "chance" not in threshold_for_f1(KNOWN).sentence


@pytest.mark.parametrize(
    "change",
    [{"defects": 0}, {"good": 1.5}, {"recall": 1.2}, {"false_alarms": math.nan}, {"aim": 3}],
)
def test_what_cannot_be_a_threshold_s_story_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="labelled threshold: expected texts"):
        dataclasses.replace(threshold_for_f1(KNOWN), **change)
