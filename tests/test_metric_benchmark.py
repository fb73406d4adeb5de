"""The benchmark of the metrics: contenders agree where they should, and it says what is absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _metric_contenders, metrics
from benchmarks._metric_maps import Images, hot, made_maps, narrow, write
from mambaadv2.metrics import pixel_metrics

Values = dict[str, float]


@pytest.fixture(scope="module")
def made() -> Images:
    return made_maps(8, size=64)


def _values(name: str, images: Images, folder: Path) -> Values:
    write(images, folder)
    values: Values = _metric_contenders.measure(name, folder)["values"]
    return values


def test_images_come_back_from_the_files(made: Images, tmp_path: Path) -> None:
    write(made, tmp_path)
    for (mask, scores), expected_mask, expected in zip(
        _metric_contenders.images(tmp_path), *made, strict=True
    ):
        assert (mask == expected_mask).all()
        assert (scores == expected).all()


def test_ours_and_scikit_learn_agree(made: Images, tmp_path: Path) -> None:
    full = _values("full precision", made, tmp_path)
    stream = _values("streaming with intervals", made, tmp_path)
    theirs = _values("scikit-learn", made, tmp_path)
    for name in metrics.VALUES:
        assert stream[name] == pytest.approx(full[name], abs=1e-4), name
        if name in theirs:
            assert theirs[name] == pytest.approx(full[name], abs=1e-9), name
    assert "pixel_aupro" not in theirs
    assert stream["pixel aupro low"] <= full["pixel_aupro"] <= stream["pixel aupro high"]
    assert 0 <= stream["bound"] < 1e-4
    assert 0 < stream["resolution"] < 1e-2


def test_the_usual_loop_is_near_without_an_outlier_and_far_with_one(
    made: Images, tmp_path: Path
) -> None:
    exact = _values("full precision", made, tmp_path)["pixel_aupro"]
    loop = _values("200 thresholds", made, tmp_path)["pixel_aupro"]
    assert loop == pytest.approx(exact, abs=0.02)
    warm = hot(made)
    exact = _values("full precision", warm, tmp_path)["pixel_aupro"]
    loop = _values("200 thresholds", warm, tmp_path)["pixel_aupro"]
    assert abs(loop - exact) > 0.02
    assert _values("streaming", warm, tmp_path)["pixel_aupro"] == pytest.approx(exact, abs=1e-4)


def test_changed_maps_keep_what_they_should(made: Images) -> None:
    before = pixel_metrics(*made)
    masks, maps = narrow(made)
    assert 1000 < min(scores.min() for scores in maps) < max(s.max() for s in maps) < 1001.1
    assert pixel_metrics(masks, maps).auroc == pytest.approx(before.auroc, abs=0.05)
    changed = hot(made)[1]
    assert sum(int((a != b).sum()) for a, b in zip(changed, made[1], strict=True)) == 1


def test_memory_is_taken_on_the_way(made: Images, tmp_path: Path) -> None:
    write(made, tmp_path)
    rows = _metric_contenders.grow("streaming", tmp_path, [5, 20])["memory"]
    assert [row["images"] for row in rows] == [5, 20]
    assert 0 <= rows[0]["memory_mb"] <= rows[1]["memory_mb"]


@pytest.mark.slow
def test_the_whole_run_says_what_is_met_and_what_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAMBAADV2_DATA", str(tmp_path / "none"))
    absent: dict[str, Path | str] = dict.fromkeys(metrics.PEERS.values(), "not installed: no way")
    absent["scikit-learn"] = Path(sys.executable)
    monkeypatch.setattr(metrics, "install", lambda cache: absent)
    out = tmp_path / "results" / "metrics.json"
    arguments = ["--images", "6", "--grow", "4,8", "--out", str(out), "--cache", str(tmp_path)]
    assert metrics.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not installed: no way" in printed
    assert "times faster than anomalib's AUPRO: not measured" in printed
    assert "no real images" in printed
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found["maps"]) == {"made", "one hot pixel", "narrow"}
    for rows in found["maps"].values():
        assert set(rows) == {*metrics.OURS, *metrics.PEERS}
        assert metrics.differences(rows) < 1e-4
        assert rows["scikit-learn"]["values"]["pixel_auroc"] > 0.5
    assert [row["images"] for row in found["memory"]["streaming"]["memory"]] == [4, 8]
    assert any("difference to full precision, narrow" in line for line in found["verdicts"])


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    row = metrics.run("streaming", tmp_path, Path(sys.executable))
    assert "maps.npy" in row["absent"]


def test_verdicts_count() -> None:
    def row(ms: float) -> metrics.Row:
        values = {**dict.fromkeys(metrics.VALUES, 0.5), "pixel_iou_max": 0.5, "bound": 0.0}
        return {"ms_adding": ms, "ms_finishing": 0.0, "memory_mb": 1.0, "values": values}

    rows = {"streaming": row(1), "full precision": row(3), "anomalib AUPRO": row(19)}
    memory = {"streaming": {"memory": [{"images": 9, "memory_mb": 201.0}]}}
    lines = metrics.verdicts({"made": rows}, memory)
    assert lines[0].endswith("at most 2: met")
    assert lines[1] == "times faster than anomalib's AUPRO: 19.0, at least 20: missed"
    assert lines[2].endswith("at most 200: missed")
    assert np.isclose(metrics.differences(rows), 0)
