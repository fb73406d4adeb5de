"""Evaluation of a predictor whose answers are painted into the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mambaadv2 import evaluate as package_evaluate
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.evaluate import METRICS, ClassResult, Evaluation, class_metrics, evaluate
from mambaadv2.image import write_png
from mambaadv2.metrics import auroc, average_precision, f1_max, pixel_metrics
from mambaadv2.predict import Prediction

IMAGE_METRICS = METRICS[:3]
PIXEL_METRICS = METRICS[3:7]


class PaintedPredictor:
    """Takes the red channel for the anomaly map and its maximum for the score."""

    classes = ("nut", "tile")

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return [self._one(image) for image in images]

    def _one(self, image: NDArray[np.uint8]) -> Prediction:
        values = image[:, :, 0].astype(np.float32) / np.float32(200)
        return Prediction(
            map=values,
            score=float(values.max()),
            defect=bool(values.max() >= 1),
            threshold=1.0,
            class_name="nut",
        )


class DataSet:
    """Writes test images of a given heat, with or without masks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.heat: dict[str, list[NDArray[np.uint8]]] = {}
        self.masks: dict[str, list[NDArray[np.bool_]]] = {}

    def add(
        self,
        name: str,
        kind: str,
        *,
        heat: int = 0,
        count: int = 3,
        size: tuple[int, int] = (12, 10),
        mask: bool = True,
    ) -> None:
        """Images of noise up to 100, with a square that is `heat` hotter; no defect if good."""
        for number in range(count):
            red = self.rng.integers(0, 100, size).astype(np.uint8)
            truth = np.zeros(size, dtype=np.bool_)
            if kind != "good":
                truth[2:6, 3:7] = True
                red[truth] += np.uint8(heat)
            rgb = np.stack((red, red // 2, 255 - red), axis=2)
            _write(self.root / name / "test" / kind / f"{number:03}.png", rgb)
            if kind != "good" and mask:
                path = self.root / name / "ground_truth" / kind / f"{number:03}_mask.png"
                _write(path, truth.astype(np.uint8) * 255)
            self.heat.setdefault(name, []).append(red)
            self.masks.setdefault(name, []).append(truth)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data")


def _evaluated(data: DataSet, name: str) -> ClassResult:
    return evaluate(PaintedPredictor(), data.root, progress=False).classes[name]


def test_every_metric_is_the_exact_one_on_the_image_in_its_own_size(data: DataSet) -> None:
    data.add("tile", "dent", heat=20)
    data.add("tile", "good", size=(9, 14), count=4)
    data.add("tile", "scratch", heat=40, size=(21, 8))
    found = _evaluated(data, "tile")
    maps = [red.astype(np.float32) / np.float32(200) for red in data.heat["tile"]]
    labels = [bool(mask.any()) for mask in data.masks["tile"]]
    scores = [float(values.max()) for values in maps]
    pixel = pixel_metrics(data.masks["tile"], maps)
    assert found.metrics == {
        "image_auroc": auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_f1max": f1_max(labels, scores)[0],
        "pixel_auroc": pixel.auroc,
        "pixel_ap": pixel.average_precision,
        "pixel_f1max": pixel.f1_max,
        "pixel_aupro": pixel.aupro,
        "mad": pytest.approx(np.mean([found.metrics[metric] for metric in METRICS[:7]])),
    }
    assert tuple(found.metrics) == METRICS
    assert (found.n_good, found.n_defect, found.notes) == (4, 6, ())


def test_the_mean_is_over_the_classes_that_have_the_metric(data: DataSet) -> None:
    for name, heat, mask in (("nut", 100, True), ("tile", 5, False)):
        data.add(name, "dent", heat=heat, mask=mask)
        data.add(name, "good")
    evaluation = evaluate(PaintedPredictor(), data.root, progress=False)
    nut, tile = (evaluation.classes[name].metrics for name in ("nut", "tile"))
    for metric in IMAGE_METRICS:
        assert evaluation.mean[metric] == pytest.approx(np.mean([nut[metric], tile[metric]]))
        assert evaluation.n_classes[metric] == 2
    for metric in (*PIXEL_METRICS, "mad"):
        assert tile[metric] is None
        assert evaluation.mean[metric] == nut[metric] is not None
        assert evaluation.n_classes[metric] == 1
    assert evaluation.images == 12


@pytest.mark.parametrize(
    ("kinds", "undefined", "note"),
    [
        ({"good": True}, METRICS, "no test image has a defect: metrics undefined"),
        (
            {"dent": True},
            (*IMAGE_METRICS, "mad"),
            "no test image is good: image metrics undefined",
        ),
        (
            {"good": True, "dent": False},
            (*PIXEL_METRICS, "mad"),
            "no masks for dent: pixel metrics undefined",
        ),
    ],
    ids=["no-defect", "no-good", "no-mask"],
)
def test_what_a_class_cannot_tell_is_undefined_with_a_note(
    data: DataSet, kinds: dict[str, bool], undefined: tuple[str, ...], note: str
) -> None:
    for kind, mask in kinds.items():
        data.add("tile", kind, heat=100, mask=mask)
    found = _evaluated(data, "tile")
    assert {m for m in METRICS if found.metrics[m] is None} == set(undefined)
    assert found.notes == (note,)


def test_without_masks_only_image_metrics_are_defined_whatever_the_maps() -> None:
    found = class_metrics(np.array([True, False]), np.array([0.9, 0.3]), None, [])
    assert {m for m in METRICS if found.metrics[m] is None} == {*PIXEL_METRICS, "mad"}
    assert (found.n_good, found.n_defect, found.notes) == (1, 1, ())


def test_a_note_on_a_class_without_defects_is_given_once() -> None:
    masks, maps = [np.zeros((2, 3), dtype=np.bool_)], [np.ones((2, 3), dtype=np.float32)]
    found = class_metrics(np.array([False]), np.array([1.0]), masks, maps)
    assert found.metrics == dict.fromkeys(METRICS)
    assert found.notes == ("no test image has a defect: metrics undefined",)


def test_empty_masks_of_defect_images_are_noted(data: DataSet) -> None:
    data.add("tile", "dent", heat=100, count=2)
    data.add("tile", "good")
    masks = sorted((data.root / "tile/ground_truth/dent").iterdir())
    black = np.zeros((12, 10), dtype=np.uint8)
    write_png(masks[0], black)
    found = _evaluated(data, "tile")
    assert found.notes == ("1 defect image(s) with an empty mask: good to the pixel metrics",)
    assert None not in found.metrics.values()
    write_png(masks[1], black)
    found = _evaluated(data, "tile")
    assert found.notes[1] == "no defect pixel or no good pixel: pixel metrics undefined"
    assert [found.metrics[metric] for metric in PIXEL_METRICS] == [None] * 4


def test_a_class_not_trained_is_evaluated_and_marked(data: DataSet) -> None:
    data.add("cable", "dent", heat=100)
    data.add("cable", "good")
    evaluation = evaluate(PaintedPredictor(), data.root, progress=False)
    assert evaluation.classes["cable"].metrics["pixel_aupro"] == 1.0
    assert "* cable: the model was not trained on this class" in evaluation.table()
    assert json.loads(evaluation.to_json())["notes"] == {
        "cable": ["the model was not trained on this class"]
    }


def test_a_mask_of_another_size_is_an_error_with_both_names_and_sizes(data: DataSet) -> None:
    data.add("tile", "dent", count=1)
    mask = data.root / "tile/ground_truth/dent/000_mask.png"
    write_png(mask, np.ones((6, 5), dtype=np.uint8))
    with pytest.raises(DataError) as caught:
        evaluate(PaintedPredictor(), data.root, progress=False)
    for part in (str(mask), str(data.root / "tile/test/dent/000.png"), "10 x 12", "5 x 6"):
        assert part in str(caught.value)


def test_classes_are_picked_by_name_and_one_class_may_be_the_root(data: DataSet) -> None:
    for name in ("nut", "tile"):
        data.add(name, "good")
    picked = evaluate(PaintedPredictor(), data.root, classes=["tile"], progress=False)
    alone = evaluate(PaintedPredictor(), str(data.root / "tile"), progress=False)
    assert list(picked.classes) == list(alone.classes) == ["tile"]


def test_the_json_file_is_complete_or_absent(data: DataSet, tmp_path: Path) -> None:
    data.add("nut", "dent", heat=100)
    data.add("nut", "good")
    data.add("tile", "good")
    target = tmp_path / "new" / "numbers.json"
    evaluation = evaluate(PaintedPredictor(), data.root, json_path=target, progress=False)
    assert [path.name for path in target.parent.iterdir()] == ["numbers.json"]
    text = target.read_text(encoding="utf-8")
    assert text == evaluation.to_json()
    content = json.loads(text)
    assert list(content) == ["protocol", "classes", "mean", "notes"]
    assert content["protocol"] == "exact"
    assert set(content["classes"]["nut"]) == {*METRICS, "n_good", "n_defect"}
    assert content["classes"]["tile"]["mad"] is None
    assert content["mean"]["pixel_aupro"] == 1.0
    assert content["mean"]["n_classes"] == dict.fromkeys(METRICS, 1)
    # A later failure keeps the earlier file.
    (data.root / "tile/test/good/000.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        evaluate(PaintedPredictor(), data.root, json_path=target, progress=False)
    assert target.read_text(encoding="utf-8") == text


def test_a_folder_as_json_file_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file to write"):
        evaluate("no-such-run", "no-such-data", json_path=tmp_path)


def test_progress_is_silent_where_there_is_no_terminal(
    data: DataSet, capfd: pytest.CaptureFixture[str]
) -> None:
    data.add("tile", "good")
    evaluate(PaintedPredictor(), data.root)
    assert capfd.readouterr() == ("", "")


def test_the_table_says_what_is_missing_and_from_which_mean() -> None:
    full = dict.fromkeys(METRICS, 0.987)
    image_only = {**full, **dict.fromkeys((*PIXEL_METRICS, "mad"))}
    evaluation = Evaluation(
        classes={
            "nut": ClassResult(metrics=full, n_good=41, n_defect=119),
            "alien": ClassResult(
                metrics=image_only, n_good=18, n_defect=60, notes=("no masks: undefined",)
            ),
        },
        seconds=12.34,
    )
    assert evaluation.table().splitlines() == [
        "Protocol exact, in percent",
        "",
        "class   I-AUROC  I-AP  I-F1max  P-AUROC  P-AP  P-F1max  P-AUPRO   mAD  good  defect",
        "nut        98.7  98.7     98.7     98.7  98.7     98.7     98.7  98.7    41     119",
        "alien*     98.7  98.7     98.7        -     -        -        -     -    18      60",
        "mean       98.7  98.7     98.7     98.7  98.7     98.7     98.7  98.7    59     179",
        "",
        "* alien: no masks: undefined",
        "Mean P-AUROC, P-AP, P-F1max, P-AUPRO, mAD: without alien",
        "238 images in 12.3 s",
    ]


def test_it_is_part_of_the_public_list() -> None:
    assert package_evaluate is evaluate
