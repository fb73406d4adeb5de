"""New thresholds from unseen good images: what changes in a run folder, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mambaadv2 import cli
from mambaadv2.calibrate import DriftWatch
from mambaadv2.checkpoint import read_card, remove_run
from mambaadv2.data.synthetic import generate
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluate import evaluate
from mambaadv2.image import read_image, write_png
from mambaadv2.predict import load
from mambaadv2.recalibrate import calibration_words, recalibrate
from mambaadv2.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, other good images of the same two classes in `fresh`, and a run."""
    root = tmp_path_factory.mktemp("recalibrate")
    generate(root / "data", size=64, train=5, good=8, defect=1)
    train(root / "data", root / "run", epochs=2, image_size=64, progress=False, device="cpu")
    for path in sorted(root.glob("data/*/test/good/*.png")):
        (root / "fresh").mkdir(exist_ok=True)
        shutil.copy(path, root / "fresh" / f"{path.parts[-4]}-{path.name}")
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def test_fresh_images_give_a_guarantee(made: Path, run: Path) -> None:
    before, weights = read_card(run)
    assert before.leave_one_out
    found = recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    after, same = read_card(run)
    assert same == weights
    assert not after.leave_one_out
    assert after.false_alarm_rate == 0.2
    assert (after.model, after.training) == (before.model, before.training)
    predictor = load(run, device="cpu")
    kept = json.loads((run / "calibration.json").read_text(encoding="utf-8"))
    total = 0
    for name, calibrated in found.items():
        assert after.calibration(name) == calibrated
        assert predictor.card.thresholds[name] == calibrated.threshold
        images = [read_image(made / "fresh" / file) for file, _ in kept[name]]
        scores = [p.score for p in predictor.predict(images)]
        assert scores == pytest.approx(after.calibration_scores[name], rel=1e-4)
        total += len(scores)
        if calibrated.kind == "conformal":
            assert calibrated.sentence.startswith("Guaranteed from")
            above = sum(score > calibrated.threshold for score in after.calibration_scores[name])
            assert above <= calibrated.rank - 1
    assert total == len(list((made / "fresh").iterdir()))
    assert any(c.kind == "conformal" for c in found.values())
    assert "Guaranteed from" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    low, high = after.colour_scale
    assert 0 <= low < 1 < high


def test_images_of_the_training_are_refused(made: Path, run: Path) -> None:
    first = next((made / "data").glob("*/train/good/*.png"))
    copy = run.parent / "renamed.png"
    shutil.copy(first, copy)
    before = (run / "model.json").read_bytes()
    with pytest.raises(DataError, match=r"renamed\.png: expected an image .* not seen"):
        recalibrate(run, [str(copy), str(made / "fresh")], device="cpu")
    assert (run / "model.json").read_bytes() == before
    assert not (run / "calibration.json").exists()


def test_copies_count_once(made: Path, run: Path, tmp_path: Path) -> None:
    once = recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    kept = (run / "calibration.json").read_text()
    for i, path in enumerate(sorted((made / "fresh").iterdir())):
        shutil.copy(path, tmp_path / f"copy-{i}.png")
    again = recalibrate(run, [str(made / "fresh"), str(tmp_path / "*.png")], rate=0.2, device="cpu")
    assert again == once
    assert (run / "calibration.json").read_text() == kept


def test_every_class_needs_an_image(made: Path, run: Path) -> None:
    card, _ = read_card(run)
    predictor = load(run, device="cpu")
    one = [
        path
        for path in sorted((made / "fresh").iterdir())
        if predictor.predict([read_image(path)])[0].class_name == card.classes[0]
    ]
    assert one
    before = (run / "model.json").read_bytes()
    with pytest.raises(DataError, match=f"was taken for {', '.join(card.classes[1:])}; add some"):
        recalibrate(run, [str(path) for path in one], device="cpu")
    assert (run / "model.json").read_bytes() == before


def test_a_bad_rate_changes_nothing(made: Path, run: Path) -> None:
    before = (run / "model.json").read_bytes()
    with pytest.raises(ConfigError, match="rate"):
        recalibrate(run, [str(made / "fresh")], rate=0.7, device="cpu")
    assert (run / "model.json").read_bytes() == before


def test_p_values_follow_the_new_scores(made: Path, run: Path) -> None:
    recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    card, _ = read_card(run)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (prediction,) = load(run, device="cpu").predict([noise])
    held = card.calibration_scores[prediction.class_name]
    above = sum(score >= prediction.score for score in held)
    assert prediction.p_value == (1 + above) / (len(held) + 1)


def test_what_was_counted_at_the_old_thresholds_goes(made: Path, run: Path) -> None:
    evaluate(run, made / "data", device="cpu")
    before = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert all({"n_flagged", "n_found"} <= set(c) for c in before["classes"].values())
    assert "Evaluated at earlier thresholds" not in (run / "MODEL_CARD.md").read_text()
    recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    after = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert after.pop("thresholds_replaced") is True
    for numbers in before["classes"].values():
        del numbers["n_flagged"], numbers["n_found"]
    assert after == before
    assert "Evaluated at earlier thresholds" in (run / "MODEL_CARD.md").read_text()
    evaluate(run, made / "data", device="cpu")
    assert "n_flagged" in (run / "evaluation.json").read_text()
    assert "Evaluated at earlier thresholds" not in (run / "MODEL_CARD.md").read_text()


def test_a_defect_among_the_good_images_is_shown_and_left_out(
    made: Path, run: Path, tmp_path: Path
) -> None:
    predictor = load(run, device="cpu")
    good = sorted((made / "fresh").iterdir())
    classes = {p: predictor.predict([read_image(p)])[0].class_name for p in good}
    images = tmp_path / "images"
    shutil.copytree(made / "fresh", images)
    spoilt = read_image(good[0])
    spoilt[10:54, 10:54:2] = (255, 0, 255)
    (taken,) = predictor.predict([spoilt])
    write_png(images / "spoilt.png", spoilt)
    own = [read_image(path) for path, name in classes.items() if name == taken.class_name]
    rng = np.random.default_rng(0)
    for i in range(30):  # near copies, so that the class has enough images
        noise = rng.integers(-3, 4, own[0].shape)
        near = np.clip(own[i % len(own)] + noise, 0, 255).astype(np.uint8)
        write_png(images / f"near-{i:02d}.png", near)
    found = recalibrate(run, [str(images)], rate=0.2, device="cpu")
    names = json.loads((run / "calibration.json").read_text(encoding="utf-8"))
    trimmed = [names[taken.class_name][i][0] for i in found[taken.class_name].trimmed]
    assert "spoilt.png" in trimmed
    assert (run / "suspects.png").exists()
    assert "in suspects.png" in (run / "MODEL_CARD.md").read_text()
    said = list(calibration_words(run, found))
    assert "  left out, looks mislabelled: spoilt.png" in said
    for class_name, calibrated in found.items():
        assert f"{class_name}: threshold {calibrated.threshold:.6g} from " in "\n".join(said)
        assert f"  {calibrated.sentence}" in said
    kept = recalibrate(run, [str(images)], rate=0.2, trim=False, device="cpu")
    assert not any(c.trimmed for c in kept.values())
    assert kept[taken.class_name].threshold >= found[taken.class_name].threshold
    assert not (run / "suspects.png").exists()
    assert "suspects.png" not in (run / "MODEL_CARD.md").read_text()


def test_the_command_says_what_too_few_images_are_worth(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["calibrate", str(run), str(made / "fresh"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    card, _ = read_card(run)
    for name in card.classes:
        count = len(card.kept_scores(name))
        assert f"{name}: threshold {card.thresholds[name]:.6g} from " in said
        assert f"1 % needs at least 99 held-out good images, you have {count}. " in said
    assert f"with 90 % confidence at most {math.ceil(100 * (1 - 0.1 ** (1 / count)))} %." in said


def test_a_stream_is_compared_with_images_that_fitted_nothing_else(made: Path, run: Path) -> None:
    predictor = load(run, device="cpu")
    assert predictor.unseen_scores == dict.fromkeys(predictor.classes, ())
    recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    predictor = load(run, device="cpu")
    card = predictor.card
    assert predictor.unseen_scores == {name: card.kept_scores(name) for name in card.classes}
    watch = DriftWatch(predictor.unseen_scores, delta=0.001, defects=0.01)
    for prediction in predictor.predict([read_image(p) for p in (made / "fresh").iterdir()]):
        state = watch.add(prediction.class_name, prediction.score)
    assert state.alarm_at is None


def test_a_second_training_removes_what_was_said_of_the_first(made: Path, run: Path) -> None:
    recalibrate(run, [str(made / "fresh")], rate=0.2, device="cpu")
    (run / "suspects.png").touch()
    (run / "labelled.json").touch()
    remove_run(run)
    left = {path.name for path in run.iterdir()}
    assert not left & {"calibration.json", "labelled.json", "suspects.png", "model.json"}
