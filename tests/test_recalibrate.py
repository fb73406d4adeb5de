"""New thresholds from unseen good images: what changes in a run folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mambaadv2.checkpoint import read_card
from mambaadv2.data.synthetic import generate
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.image import read_image
from mambaadv2.predict import load
from mambaadv2.recalibrate import recalibrate
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
