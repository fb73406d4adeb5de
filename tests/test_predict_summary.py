"""What a batch says as a whole: places, discoveries, drift; and that it does after a kill too."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.tiny_model import SIDE, TINY

from mambaadv2.calibrate import ColourScale, StreamWatch, adjusted_p_values, needed_images
from mambaadv2.checkpoint import read_card
from mambaadv2.errors import ConfigError
from mambaadv2.fit import TrainConfig
from mambaadv2.image import read_image, write_png
from mambaadv2.legend import legend
from mambaadv2.predict import load, predict_to_folder
from mambaadv2.predict_folder import MOST_REGIONS
from mambaadv2.recalibrate import recalibrate
from mambaadv2.summary import WATCH_DEFECTS, WATCH_DELTA
from mambaadv2.train import train_model

BATCH, PATIENCE = 8, 300.0
BEFORE, AFTER = 50, 50  # images of the stream, before and after the light changes


def draw(seed: int, light: float = 1.0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    grey = 60 + 120.0 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
    noisy = light * (grey[:, :, None] + rng.normal(0, 5, (SIDE, SIDE, 3)))
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def stained(seed: int) -> NDArray[np.uint8]:
    image = draw(seed)
    image[4:20, 4:20] = image[40:52, 40:60] = (255, 0, 0)
    return image


@dataclass(frozen=True)
class Case:
    """A run as trained, one with fresh calibration, and a stream that changes halfway."""

    trained: Path
    run: Path
    stream: Path
    whole: Path


def predict(run: Path, images: Path, out: Path, **options: Any) -> int:
    options = {"batch_size": BATCH, "progress": False, "device": "cpu", **options}
    return predict_to_folder(run, [str(images)], out, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("summary")
    folders = [root / "data" / "disc" / "train" / "good", root / "fresh", root / "stream"]
    for folder in folders:
        folder.mkdir(parents=True)
    for i in range(12):
        write_png(folders[0] / f"{i:02d}.png", draw(i))
    for i in range(40):
        write_png(root / "fresh" / f"{i:02d}.png", draw(1000 + i))
    for i in range(BEFORE + AFTER):
        light = 1.0 if i < BEFORE else 0.5
        write_png(root / "stream" / f"{i:03d}.png", draw(2000 + i, light))
    (root / "stream" / "007.png").write_bytes(b"no image")
    config = TrainConfig(epochs=15, batch_size=8, device="cpu")
    trained = train_model(root / "data", root / "run", TINY, config, progress=False)
    run = Path(shutil.copytree(trained, root / "calibrated"))
    recalibrate(run, [str(root / "fresh")], rate=0.05, device="cpu")
    assert predict(run, root / "stream", root / "whole", watch=True, fdr=0.1) == 1
    return Case(trained, run, root / "stream", root / "whole")


def test_the_counts_are_those_of_the_lines(case: Case) -> None:
    found, read = summary(case.whole), [line for line in lines(case.whole) if "error" not in line]
    assert (found["images"], found["errors"]) == (BEFORE + AFTER, 1)
    assert found["defects"] == sum(line["defect"] for line in read)
    own = found["classes"]["disc"]
    assert (own["images"], own["defects"]) == (len(read), found["defects"])
    counts, _ = np.histogram([line["p_value"] for line in read], bins=10, range=(0, 1))
    assert own["p_values"] == counts.tolist()
    plain = case.whole.parent / "plain"
    predict(case.run, case.stream / "000.png", plain)
    assert {"watch", "fdr"}.isdisjoint(summary(plain))


def test_the_change_of_light_is_seen_and_only_that(case: Case) -> None:
    watched = summary(case.whole)["watch"]
    assert (watched["delta"], watched["defects"]) == (WATCH_DELTA, WATCH_DEFECTS)
    assert watched["compared_with"] == "held-out good images"
    assert watched["images"] == BEFORE + AFTER - 1
    (alarm,) = watched["alarms"]
    assert BEFORE < alarm["line"] <= BEFORE + 40
    assert Path(alarm["path"]).name == f"{alarm['line'] - 1:03d}.png"
    assert (alarm["class"], alarm["says"]) == (None, "scores have risen")
    # The same by hand: the three lines of the documentation.
    watch = StreamWatch(read_card(case.run)[0].unseen_scores, delta=0.001, defects=0.01)
    cries = [
        number
        for number, line in enumerate(lines(case.whole), start=1)
        if "error" not in line and watch.add(line["class"], line["score"])
    ]
    assert cries == [alarm["line"]]


def test_the_watch_speaks_while_it_works(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predict(case.run, case.stream, tmp_path / "out", watch=True, progress=True)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("watch: ")]
    (alarm,) = summary(case.whole)["watch"]["alarms"]
    assert "the chance of any alarm in this call is at most 0.1 %" in said[0]
    assert said[1].startswith(f"watch: change at line {alarm['line']} ({alarm['path']}): scores ")
    assert said[2:] == [f"watch: 1 change in {BEFORE + AFTER - 1} images"]
    # Straight from training the stream can only be compared with itself, and that is said.
    predict(case.trained, case.stream, tmp_path / "alone", watch=True, progress=True)
    opening = next(s for s in capfd.readouterr().err.splitlines() if s.startswith("watch: "))
    assert "compared with the stream's own beginning" in opening
    found = summary(tmp_path / "alone")["watch"]
    assert found["compared_with"] == "the stream's beginning"
    assert all(each["line"] > BEFORE for each in found["alarms"])


@given(data=st.data())
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_it_was_cut_the_watch_goes_on(
    case: Case, tmp_path: Path, data: st.DataObject
) -> None:
    text = (case.whole / "predictions.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(case.whole, out)
    (out / "predictions.jsonl").write_bytes(text[:cut])
    (out / "summary.json").write_text("of other lines")
    assert predict(case.run, case.stream, out, watch=True, fdr=0.1, resume=True) == 1
    expected = json.loads((case.whole / "summary.json").read_text())
    assert summary(out) == expected


def test_no_summary_stands_beside_lines_that_are_not_all(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(case.whole, tmp_path / "out")
    monkeypatch.setattr("mambaadv2.predict._predict_rest", Broken())
    with pytest.raises(KeyboardInterrupt):
        predict(case.run, case.stream, out, watch=True, resume=True)
    assert not (out / "summary.json").exists()


class Broken:
    def __call__(self, *args: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_process_and_its_successor_watch_as_one(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["predict", str(case.run), str(case.stream), "--out", str(out), "--resume"]
    command += ["--watch", "--fdr", "0.1", "--batch-size", str(BATCH), "--device", "cpu"]
    for moment in (5, BEFORE + 3):
        with subprocess.Popen(
            [sys.executable, "-m", "mambaadv2", *command], stderr=subprocess.DEVNULL
        ) as process:
            end = time.monotonic() + PATIENCE
            path = out / "predictions.jsonl"
            while not path.exists() or path.read_bytes().count(b"\n") < moment:
                assert process.poll() is None, "ended before it could be killed"
                assert time.monotonic() < end
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not (out / "summary.json").exists()
    assert predict(case.run, case.stream, out, watch=True, fdr=0.1, resume=True) == 1
    assert summary(out) == summary(case.whole)


def test_discoveries_are_those_of_the_whole_batch(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(10):
        write_png(images / f"good{i}.png", draw(3000 + i))
        write_png(images / f"bad{i}.png", stained(3100 + i))
    (images / "none.png").write_bytes(b"no image")
    predict(case.run, images, tmp_path / "out", fdr=0.1, progress=True)
    found = summary(tmp_path / "out")["fdr"]
    read = [(n, line) for n, line in enumerate(lines(tmp_path / "out"), 1) if "error" not in line]
    adjusted = adjusted_p_values([line["p_value"] for _, line in read])
    expected = [
        {"line": n, "path": line["path"], "p_value": line["p_value"], "adjusted": rate}
        for (n, line), rate in zip(read, adjusted.tolist(), strict=True)
        if rate <= 0.1
    ]
    assert found["discoveries"] == expected
    assert {"share": 0.1, "images": 20, "found": len(expected)}.items() <= found.items()
    assert found["p_values_guaranteed"] is True
    names = {Path(each["path"]).name for each in expected}
    assert {f"bad{i}.png" for i in range(10)} <= names
    (said,) = [s for s in capfd.readouterr().err.splitlines() if s.startswith("fdr: ")]
    assert said.startswith(f"fdr: {len(expected)} of 20 images are called defects; at most 10 % of")
    assert str(images / "bad0.png") in said


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.01, f"40 held-out good images cannot show it in any batch, which takes at least {99}"),
        (0.1, "with 40 held-out good images that takes at least 3 images above all of them"),
        (0.9, "with 40 held-out good images that takes at least 1 image above all of them"),
    ],
)
def test_why_nothing_is_discovered(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float, words: str
) -> None:
    assert needed_images(0.01) == 99
    card, _ = read_card(case.run)
    assert len(card.kept_scores("disc")) == 40
    images = tmp_path / "images"
    images.mkdir()
    predictor, count, seed = load(case.run, device="cpu"), 0, 4000
    while count < 12:  # such as no rule can take for defects
        image = draw(seed)
        seed += 1
        if (predictor.predict([image])[0].p_value or 0) > 0.92:
            write_png(images / f"{count:02d}.png", image)
            count += 1
    predict(case.run, images, tmp_path / "out", fdr=share, progress=True)
    (said,) = [s for s in capfd.readouterr().err.splitlines() if s.startswith("fdr: ")]
    assert said == f"fdr: none of 12 images can be called a defect at {100 * share:g} %" + (
        f": {words}"
    )
    assert summary(tmp_path / "out")["fdr"]["discoveries"] == []


def test_without_held_out_scores_there_are_no_discoveries(case: Case, tmp_path: Path) -> None:
    run = shutil.copytree(case.run, tmp_path / "run")
    content = json.loads((run / "model.json").read_text())
    content["calibration_scores"] = {"disc": []}
    (run / "model.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"fdr: expected a run that knows the scores .* for disc"):
        predict(run, case.stream, out, fdr=0.1)
    with pytest.raises(ConfigError, match="fdr: expected a share between 0 and 1, got 1"):
        predict(case.run, case.stream, out, fdr=1.0)
    assert not out.exists()
    predict(run, case.stream / "000.png", out, watch=True)
    assert lines(out)[0]["p_value"] is None
    assert summary(out)["classes"]["disc"]["p_values"] == [0] * 10


def test_regions_are_in_the_lines(case: Case, tmp_path: Path) -> None:
    predictor = load(case.run, device="cpu")
    for name, image in (("bad", stained(1)), ("good", draw(5000))):
        write_png(tmp_path / f"{name}.png", image)
        predict(case.run, tmp_path / f"{name}.png", tmp_path / name)
    (bad,), (good,) = lines(tmp_path / "bad"), lines(tmp_path / "good")
    assert (good["defect"], good["n_regions"], good["regions"]) == (False, 0, [])
    (prediction,) = predictor.predict([stained(1)])
    places = predictor.regions(prediction)
    assert bad["n_regions"] == len(places) > 0
    for told, place in zip(bad["regions"], places, strict=True):
        assert (told["area"], tuple(told["box"]), tuple(told["at"])) == (
            *(place.area, place.box, place.at),
        )
        assert told["peak"] == pytest.approx(place.peak, rel=1e-4)
        assert told["p_value"] == place.p_value
    assert bad["regions"][0]["p_value"] == bad["p_value"]


def test_small_regions_can_be_left_out(case: Case, tmp_path: Path) -> None:
    (prediction,) = load(case.run, device="cpu").predict([stained(1)])
    areas = [r.area for r in load(case.run, device="cpu").regions(prediction)]
    write_png(tmp_path / "bad.png", stained(1))
    predict(case.run, tmp_path / "bad.png", tmp_path / "out", min_area=max(areas))
    (line,) = lines(tmp_path / "out")
    assert [r["area"] for r in line["regions"]] == [max(areas)] * areas.count(max(areas))
    assert line["defect"]
    with pytest.raises(ConfigError, match=r"min_area: [0-9]+ there, 1 now"):
        predict(case.run, tmp_path / "bad.png", tmp_path / "out", resume=True)
    predict(case.run, tmp_path / "bad.png", tmp_path / "out", min_area=10**9)  # larger than it is
    (line,) = lines(tmp_path / "out")
    assert (line["defect"], line["n_regions"]) == (True, 0)
    with pytest.raises(ConfigError, match="min_area: expected 1 pixel or more, got 0"):
        predict(case.run, tmp_path / "bad.png", tmp_path / "out", min_area=0)


def test_a_line_has_no_more_than_so_many_regions(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(case.run, device="cpu")
    (prediction,) = predictor.predict([stained(1)])
    (place, *_) = predictor.regions(prediction)
    many = [place] * (MOST_REGIONS + 5)
    monkeypatch.setattr("mambaadv2.predictor.Predictor.regions", lambda *args, **kw: many)
    write_png(tmp_path / "bad.png", stained(1))
    predict(case.run, tmp_path / "bad.png", tmp_path / "out")
    (line,) = lines(tmp_path / "out")
    assert (line["n_regions"], len(line["regions"])) == (MOST_REGIONS + 5, MOST_REGIONS)


def test_what_made_the_thresholds_is_told(case: Case) -> None:
    card, _ = read_card(case.run)
    made = json.loads((case.whole / "predict.json").read_text())
    assert made["threshold_rules"] == {"disc": card.threshold_sentence("disc")}
    assert "Guaranteed from 40 held-out good images" in made["threshold_rules"]["disc"]
    marks = load(case.run, device="cpu").colour_marks("disc")
    assert made["colour_marks"] == {"disc": [list(mark) for mark in marks]}
    assert {line.get("threshold_kind") for line in lines(case.whole)} == {"conformal", None}


def test_lines_of_other_held_out_images_are_not_gone_on_with(case: Case, tmp_path: Path) -> None:
    run, out = shutil.copytree(case.run, tmp_path / "run"), tmp_path / "out"
    predict(run, case.stream / "000.png", out)
    content = json.loads((run / "model.json").read_text())
    content["calibration_scores"]["disc"][0] *= 0.999999
    (run / "model.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="held_out_sha256: "):
        predict(run, case.stream / "000.png", out, resume=True)


def test_the_legend_has_a_bar_for_each_class(case: Case) -> None:
    scale = ColourScale(low=0.5, high=2.0)
    none, one, two = (legend(scale, {name: [] for name in names}) for names in ("", "a", "ab"))
    assert none.shape[0] < one.shape[0] < two.shape[0]
    assert none.shape[1:] == one.shape[1:] == two.shape[1:]
    marked = legend(scale, {"a": [(1.0, 0.05)]})
    assert (marked != one).any()
    # Outside of the scale, or on top of another, nothing can be marked.
    assert (legend(scale, {"a": [(0.4, 0.5), (3.0, 0.01)]}) == one).all()
    assert (legend(scale, {"a": [(0.9999, 0.06), (1.0, 0.05)]}) == marked).all()
    legend(scale, {"é\n\udcff": [(1.0, 0.05)]})
    drawn = read_image(case.whole / "scale.png")
    predictor = load(case.run, device="cpu")
    assert (drawn == legend(predictor.colour_scale, {"disc": predictor.colour_marks("disc")})).all()
