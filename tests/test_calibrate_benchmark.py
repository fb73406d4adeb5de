"""`scripts/bench calibrate` measures what it says, on few sets and generated images."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from benchmarks import _calibrate_cases as cases
from benchmarks import calibrate
from mambaadv2.data.synthetic import generate
from mambaadv2.train import train


def test_rates_of_rules_that_have_a_formula() -> None:
    rows = cases.thresholds(cases.SHAPES["skewed"], 32, sets=2000, seed=1)
    # The share above the maximum of n is Beta(1, n); four standard errors.
    assert rows["maximum"]["false_alarms"] == pytest.approx(1 / 33, abs=4 / 33 / 2000**0.5)
    worst = float(stats.beta.ppf(0.95, 1, 32))
    assert rows["maximum"]["false_alarms_worst_twentieth"] == pytest.approx(worst, rel=0.15)
    assert rows["ours"]["false_alarms"] <= rows["maximum"]["false_alarms"]
    for row in rows.values():
        assert row["recall"] > row["false_alarms"]


def test_the_threshold_of_the_true_distribution_finds_nine_in_ten() -> None:
    for shape in cases.SHAPES.values():
        limit = shape.good.ppf(1 - cases.RATE)
        assert shape.good.sf(limit - shape.shift) == pytest.approx(cases.RIGHT)


def test_distances_are_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    known, points = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 4, 3))
    found = cases._distances(known, points)
    for s in range(2):
        covariance = np.cov(known[s].T, bias=True)
        covariance += 0.05 * np.trace(covariance) / 3 * np.eye(3)
        for m in range(4):
            offset = points[s, m] - known[s].mean(axis=0)
            expected = offset @ np.linalg.solve(covariance, offset)
            assert found[s, m] == pytest.approx(expected)


def test_leaving_out_is_what_keeps_the_rate() -> None:
    found = cases.leave_one_out(20, 0.1, sets=400)
    assert found["own share"] > 0.2
    assert found["jackknife"] < 0.2
    assert found["jackknife+"] <= 0.2


def test_all_of_it_runs_and_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path / "data", size=64, train=4, good=3, defect=2)
    run = train(tmp_path / "data", tmp_path / "run", epochs=1, image_size=64, progress=False)
    monkeypatch.setattr(calibrate, "SIZES", (20, 99))
    monkeypatch.setattr(calibrate, "SHOWN", (20, 99))
    monkeypatch.setattr(calibrate, "drift", functools.partial(cases.drift, repeats=1))
    out, plot = tmp_path / "results" / "calibrate.json", tmp_path / "plot.svg"
    places = ["--out", str(out), "--plot", str(plot), "--sets", "2"]
    assert calibrate.main(["--run", str(run), "--data", str(tmp_path / "data"), *places]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    for row in found["real"]["classes"].values():
        assert row["held_out"] == 1  # too few for a standard deviation
        assert set(row["rules"]) == {*cases.RULES, cases.F1} - {cases.SIGMA}
        for one in row["rules"].values():
            low, high = one["false_alarms_95"]
            assert low <= one["flagged_good"] / row["test_good"] <= high
    assert set(found["made"]) == set(cases.SHAPES)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert "Real: good images flagged" in capsys.readouterr().out


def test_without_a_run_real_scores_are_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "made", lambda sets: {})
    monkeypatch.setattr(calibrate, "leave_out_rows", lambda sets: {})
    monkeypatch.setattr(calibrate, "made_table", lambda rows: "")
    monkeypatch.setattr(calibrate, "drift", lambda **_: {})
    monkeypatch.setattr(calibrate, "chart", lambda rows: "")
    places = ["--out", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")]
    assert calibrate.main(places) == 0
    assert "real scores: skipped, no --run" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["real"] is None
    assert calibrate.main(["--run", str(tmp_path / "none"), *places]) == 2
    assert "expected a run folder" in capsys.readouterr().err
