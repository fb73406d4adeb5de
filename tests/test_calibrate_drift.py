"""The watch over a stream: exact p-values, its bound on false alarms, and how soon it sees."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mambaadv2.calibrate import DriftState, DriftWatch
from mambaadv2.calibrate.drift import _BETS, _place
from mambaadv2.errors import ConfigError

Array = NDArray[np.float64]
RARE = 1e-6


def run(watch: DriftWatch, scores: Array, name: str = "nut") -> list[DriftState]:
    return [watch.add(name, float(score)) for score in scores]


def good(rng: np.random.Generator, count: int) -> Array:
    return np.maximum(rng.normal(3, 0.3, count), 0.01)


@pytest.mark.parametrize("bet", _BETS, ids=lambda bet: f"{bet.slope},{bet.bend}")
def test_bets_are_fair_and_never_negative(bet: Any) -> None:
    grid = (np.arange(20000) + 0.5) / 20000
    values = np.array([bet(float(p)) for p in grid])
    assert values.mean() == pytest.approx(1.0, abs=1e-6)
    assert values.min() >= 0.0
    # No contamination of a share d can be worth more than its price.
    for defects in (0.01, 0.1):
        moved = [max(bet(float(min(1, p + s * defects))) for s in (-p, 0, 1 - p)) for p in grid]
        worst = (1 - defects) * np.mean(moved) + defects * values.max()
        assert 1 < worst <= bet.price(defects) + 1e-9


@given(
    st.lists(st.integers(0, 5).map(float), max_size=10),
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20),
    st.integers(0, 9),
)
def test_the_capital_is_that_of_the_definition(
    calibration: list[float], stream: list[float], seed: int
) -> None:
    """Every bet from every starting time by itself, p-values by counting."""
    watch = DriftWatch({"nut": calibration}, seed=seed)
    history, found = list(calibration), []
    for t, score in enumerate(stream, start=1):
        state = watch.add("nut", score)
        above = sum(s > score for s in history)
        equal = sum(s == score for s in history) + 1
        assert above < state.p_value * (len(history) + 1) < above + equal
        history.append(score)
        found.append(state.p_value)
        capital = 1 / (t + 1)
        for bet in _BETS:
            for k in range(t):
                weight = 1 / ((k + 1) * (k + 2)) / len(_BETS)
                capital += weight * math.prod(bet(p) for p in found[k:])
        assert state.capital == pytest.approx(capital) == pytest.approx(watch.capital)


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_an_unchanged_stream_are_independent_and_uniform(ties: bool) -> None:
    """Over many short streams after few held-out images, where a fixed ranking fails."""
    rng = np.random.default_rng(3)
    first, last, product = [], [], []
    for seed in range(1500):
        drawn = rng.poisson(2.0, 15).astype(float) if ties else good(rng, 15)
        p = [s.p_value for s in run(DriftWatch({"nut": drawn[:5].tolist()}, seed=seed), drawn[5:])]
        first.append(p[0])
        last.append(p[-1])
        product.append((p[-1] - 0.5) * (p[-2] - 0.5))
    for sample in (first, last):
        assert stats.kstest(sample, "uniform").pvalue > RARE
    # Independent uniforms: variance 1/144 of the product; five and a half standard errors.
    assert abs(np.mean(product)) < 5.5 / 12 / math.sqrt(1500)


def _scores(rng: np.random.Generator, kind: str, count: int) -> Array:
    if kind == "normal":
        return good(rng, count)
    if kind == "ties":
        return rng.poisson(3.0, count).astype(np.float64)
    found: Array = np.abs(rng.standard_cauchy(count))
    return found


@pytest.mark.parametrize("held, kind", [(5, "normal"), (32, "normal"), (32, "ties"), (0, "heavy")])
def test_unchanged_streams_seldom_alarm(held: int, kind: str) -> None:
    """Ville's bound, at a delta that can be counted; two classes, each with its own unit."""
    streams, length, delta = 150, 250, 0.1
    rng = np.random.default_rng(held)
    alarms = 0
    for seed in range(streams):
        names = rng.integers(0, 2, length)
        drawn = _scores(rng, kind, length + 2 * held)
        calibration = {"0": drawn[:held].tolist(), "1": (50 * drawn[held : 2 * held]).tolist()}
        watch = DriftWatch(calibration, delta=delta, seed=seed)
        for name, score in zip(names, drawn[2 * held :], strict=True):
            watch.add(str(name), float(score) * (50 if name else 1))
        alarms += watch.alarm_at is not None
    assert alarms <= stats.binom.ppf(1 - RARE, streams, delta)


def test_defects_up_to_the_share_allowed_do_not_alarm() -> None:
    streams, length, delta, share = 100, 300, 0.1, 0.05
    rng = np.random.default_rng(12)
    alarms = 0
    for seed in range(streams):
        scores = good(rng, length + 32)
        defects = np.append(np.zeros(32, dtype=bool), rng.random(length) < share)
        scores[defects] += 4
        watch = DriftWatch({"nut": scores[:32].tolist()}, delta=delta, defects=0.1, seed=seed)
        run(watch, scores[32:])
        alarms += watch.alarm_at is not None
    assert alarms <= stats.binom.ppf(1 - RARE, streams, delta)


@pytest.mark.parametrize("before", [0, 100, 600])
@pytest.mark.parametrize(
    "change, says, within",
    [
        (lambda s: s + 0.6, "scores have risen", 45),  # two standard deviations
        (lambda s: s + 3.0, "scores have risen", 40),
        (lambda s: s - 0.6, "scores have fallen", 45),
        (lambda s: 3 + 4 * (s - 3), "scores scatter more", 110),
        (lambda s: 3 + (s - 3) / 4, "scores scatter less", 110),
    ],
)
def test_changes_are_seen_soon_and_named(before: int, change: Any, says: str, within: int) -> None:
    delays: list[int] = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        watch = DriftWatch({"nut": good(rng, 100).tolist()}, seed=seed)
        run(watch, good(rng, before))
        assert watch.alarm_at is None
        states = run(watch, np.maximum(change(good(rng, 250)), 0.01))
        assert watch.alarm_at is not None
        assert states[-1].says == says
        delays.append(watch.alarm_at - before)
    assert np.median(delays) <= within


def test_an_alarm_stays_and_keeps_its_time() -> None:
    rng = np.random.default_rng(0)
    watch = DriftWatch({"nut": good(rng, 50).tolist()})
    run(watch, good(rng, 60) + 2)
    at = watch.alarm_at
    assert at is not None
    states = run(watch, good(rng, 100))
    assert {s.alarm_at for s in states} == {at}
    assert {s.says for s in states} == {"scores have risen"}


def test_a_watch_goes_on_from_its_json_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    scores = good(rng, 80)
    whole = DriftWatch({"nut": [3.0, 2.9], "bolt": [1.0]}, delta=0.01, defects=0.02, seed=5)
    part = DriftWatch({"nut": [3.0, 2.9], "bolt": [1.0]}, delta=0.01, defects=0.02, seed=5)
    expected = run(whole, scores)
    found = run(part, scores[:30])
    for score in scores[30:]:
        part = DriftWatch.from_json(json.loads(json.dumps(part.to_json(), allow_nan=False)))
        found.append(part.add("nut", float(score)))
    assert found == expected
    assert part.to_json() == whole.to_json()


def test_the_state_stays_small_and_the_capital_finite() -> None:
    rng = np.random.default_rng(2)
    watch = DriftWatch({"nut": good(rng, 30).tolist()})
    run(watch, good(rng, 1000))
    states = run(watch, good(rng, 3000) + 50 + 0.05 * np.arange(3000))
    assert math.isfinite(states[-1].capital)
    assert len(json.dumps(watch.to_json())) < 60_000


def test_the_grid_is_fine_and_monotone() -> None:
    values = np.geomspace(1e-6, 1e6, 20000)
    places = [_place(float(v)) for v in values]
    assert places == sorted(places)
    assert _place(0.0) < places[0]
    assert all(abs(2 ** (p / 512) / v - 1) < 0.0007 for p, v in zip(places, values, strict=True))


@pytest.mark.parametrize("score", [-1.0, math.nan, math.inf])
def test_what_is_no_score_is_refused(score: float) -> None:
    watch = DriftWatch({})
    with pytest.raises(ConfigError, match="score: expected"):
        watch.add("nut", score)
    with pytest.raises(ConfigError, match="score: expected"):
        DriftWatch({"nut": [score]})
    assert watch.seen == 0


@pytest.mark.parametrize(
    "settings, words",
    [({"delta": 0.0}, "delta"), ({"defects": 0.5}, "defects"), ({"seed": -1}, "seed")],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words}: expected"):
        DriftWatch({}, **settings)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"capitals": [1.0]},
        {"capitals": [math.nan] * 6},
        {"counts": 3},
        {"delta": 2.0},
        {"seen": "many"},
    ],
)
def test_another_state_is_refused(change: dict[str, Any]) -> None:
    content = DriftWatch({"nut": [1.0]}).to_json()
    DriftWatch.from_json(content)
    with pytest.raises(ConfigError):
        DriftWatch.from_json(content | change)
    for name in content:
        with pytest.raises(ConfigError):
            DriftWatch.from_json({key: value for key, value in content.items() if key != name})
