"""Evaluation of a predictor whose answers are painted into the images."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from mambaadv2 import evaluate as package_evaluate
from mambaadv2.errors import BadFilesError, ConfigError, DataError, Problem
from mambaadv2.evaluate import METRICS, ClassResult, Evaluation, class_metrics, evaluate
from mambaadv2.image import write_png
from mambaadv2.metrics import auroc, average_precision, f1_max, pixel_metrics
from mambaadv2.metrics.ranking import ranking_metrics
from mambaadv2.predict import Prediction
from mambaadv2.protocols import EXACT
from mambaadv2.provenance import Call, data_sha256

# The package's attribute of this name is the function.
MODULE = importlib.import_module("mambaadv2.evaluate")
IMAGE_METRICS = METRICS[:3]
PIXEL_METRICS = (*METRICS[3:7], "pixel_iou_max")


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
    found = evaluate(PaintedPredictor(), data.root, resampling=None, progress=False)
    return found.classes[name]


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
        "pixel_iou_max": pixel.iou_max,
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
    assert [found.metrics[metric] for metric in PIXEL_METRICS] == [None] * 5


def test_a_class_not_trained_is_evaluated_and_marked(data: DataSet) -> None:
    data.add("cable", "dent", heat=100)
    data.add("cable", "good")
    evaluation = evaluate(PaintedPredictor(), data.root, resampling=None, progress=False)
    assert evaluation.classes["cable"].metrics["pixel_aupro"] == 1.0
    assert "* cable: the model was not trained on this class" in evaluation.table()
    assert json.loads(evaluation.to_json())["notes"] == {
        "cable": ["the model was not trained on this class"]
    }


class NeverAsked(PaintedPredictor):
    """Fails the test that lets it predict."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        raise AssertionError(f"asked for {len(images)} predictions")


def damaged(data: DataSet) -> tuple[Path, Path]:
    """Two classes with a broken image and a mask of another size."""
    for name in ("nut", "tile"):
        data.add(name, "dent", heat=100)
        data.add(name, "good")
    image = data.root / "nut/test/good/001.png"
    image.write_bytes(b"no image")
    mask = data.root / "tile/ground_truth/dent/000_mask.png"
    write_png(mask, np.ones((6, 5), dtype=np.uint8))
    return image, mask


def test_everything_unusable_is_named_before_the_model_is_asked(data: DataSet) -> None:
    image, mask = damaged(data)
    with pytest.raises(BadFilesError) as caught:
        evaluate(NeverAsked(), data.root, progress=False)
    assert len(caught.value.problems) == 2
    for part in (str(image), str(mask), str(data.root / "tile/test/dent/000.png"), "5 x 6"):
        assert part in str(caught.value)


def test_skip_goes_on_and_says_how_many_and_which(data: DataSet, tmp_path: Path) -> None:
    image, mask = damaged(data)
    numbers, page = tmp_path / "numbers.json", tmp_path / "page.html"
    found = evaluate(
        *(PaintedPredictor(), data.root),
        on_error="skip",
        json_path=numbers,
        report=page,
        progress=False,
    )
    assert [(result.n_good, result.n_defect) for result in found.classes.values()] == [
        *[(2, 3), (3, 2)]
    ]
    assert "2 left out, because they could not be used:" in found.table()
    skipped = json.loads(numbers.read_text(encoding="utf-8"))["skipped"]
    assert [Path(each["path"]) for each in skipped] == [image, mask]
    html = page.read_text(encoding="utf-8")
    assert "Left out: 2" in html
    for each, path in zip(skipped, (image, mask), strict=True):
        assert str(path) in each["error"]
        assert str(path) in found.table()
        assert str(path) in html


def test_the_table_names_ten_of_many_left_out(data: DataSet) -> None:
    problems = tuple(Problem(Path(f"{n}.png"), f"{n}.png: broken") for n in range(12))
    lines = Evaluation(classes={}, seconds=1.0, skipped=problems).table().splitlines()
    start = lines.index("12 left out, because they could not be used:")
    assert lines[start + 1] == "  0.png: broken"
    assert lines[start + 10 : start + 12] == ["  9.png: broken", "  and 2 more"]


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
    content = json.loads(text)
    numbers = json.loads(evaluation.to_json())
    assert {name: content[name] for name in numbers} == numbers
    assert list(numbers) == [
        *("protocol", "rules", "intervals", "classes", "mean", "notes", "skipped")
    ]
    assert content["protocol"] == "exact"
    assert set(content["classes"]["nut"]) == {
        *(*METRICS, "n_good", "n_defect", "n_flagged", "n_found", "grid_bound", "intervals")
    }
    assert content["skipped"] == []
    assert content["classes"]["tile"]["mad"] is None
    assert content["mean"]["pixel_aupro"] == 1.0
    assert content["mean"]["n_classes"] == dict.fromkeys(METRICS, 1)
    # A later failure keeps the earlier file.
    (data.root / "tile/test/good/000.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        evaluate(PaintedPredictor(), data.root, json_path=target, progress=False)
    assert target.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["json_path", "report"])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, name: str
) -> None:
    below_a_file = tmp_path / "file" / "page.html"
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path, message in ((tmp_path, "expected a file to write"), (below_a_file, "cannot write")):
        with pytest.raises(ConfigError, match=message):
            evaluate(
                *("no-such-run", "no-such-data"),
                json_path=path if name == "json_path" else None,
                report=path if name == "report" else None,
            )


def test_progress_is_one_line_where_there_is_no_terminal(
    data: DataSet, capfd: pytest.CaptureFixture[str]
) -> None:
    data.add("tile", "good")
    evaluate(PaintedPredictor(), data.root)
    layout = "data: layout mvtec (train/good/ or test/good/ in tile)\n"
    assert capfd.readouterr() == ("", layout)
    data.add("tile", "dent")
    data.add("nut", "dent", count=1)
    evaluate(PaintedPredictor(), data.root)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", layout)
    evaluate(PaintedPredictor(), data.root, progress=False)
    assert capfd.readouterr() == ("", "")


GROWTH = """
import sys
from pathlib import Path
from unittest import mock
import numpy as np
from mambaadv2.data.record import Record
from mambaadv2.data.verify import Selection
from mambaadv2.predict import Prediction
from mambaadv2.protocols import EXACT
from mambaadv2 import evaluate as _
from mambaadv2.image import write_png
import importlib
module = importlib.import_module("mambaadv2.evaluate")

class Noise:
    classes = ("tile",)
    rng = np.random.default_rng(0)
    def predict(self, images):
        maps = [self.rng.random(i.shape[:2], dtype=np.float32) for i in images]
        return [Prediction(map=m, score=float(m.max()), threshold=0.5, defect=True,
                           class_name="tile") for m in maps]

folder, side, counts = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
image, mask = folder / "image.png", folder / "mask.png"
write_png(image, np.zeros((side, side, 3), np.uint8))
write_png(mask, np.full((side, side), 255, np.uint8))
write_png(folder / "half.png", np.repeat([[0, 255]], side, 0).repeat(side // 2, 1).astype(np.uint8))
for count in map(int, counts):
    records = tuple(
        Record(path=image, class_name="tile", split="test", defect=n % 2 == 0,
               defect_type="dent" if n % 2 == 0 else "good",
               masks=(mask if n % 4 == 0 else folder / "half.png",) if n % 2 == 0 else ())
        for n in range(count))
    with mock.patch.object(module, "usable_records", lambda *a, **k: Selection(records, ())):
        found = module.evaluate(Noise(), folder, progress=False)
    assert found.images == count and found.classes["tile"].metrics["pixel_aupro"] is not None
    # Not ru_maxrss: that begins with the peak of the process which started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path), "128", "200", "2000"],
        check=True,
        capture_output=True,
        text=True,
    )
    small, large = map(int, done.stdout.split())
    # The maps of 1,800 more images are 118 MB.
    assert large - small < 20e6


def test_pieces_that_several_images_show_are_measured_too(data: DataSet) -> None:
    data.add("nut", "dent", heat=120, count=2)
    data.add("nut", "good", count=4)
    lines = ["path,class,split,label,mask,sample,view"]
    for kind, count in (("dent", 2), ("good", 4)):
        for number in range(count):
            # Each dented view has a good one of the same piece; the other pieces are good.
            piece = f"S{number}"
            mask = f"nut/ground_truth/dent/{number:03}_mask.png" if kind == "dent" else ""
            path = f"nut/test/{kind}/{number:03}.png"
            lines.append(f"{path},nut,test,{kind},{mask},{piece},C{kind == 'dent'}")
    manifest = data.root / "list.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluation = evaluate(PaintedPredictor(), manifest, progress=False)
    assert evaluation.classes["nut"].samples == {"n": 4, "auroc": 1.0, "ap": 1.0, "f1max": 1.0}
    assert "nut: over 4 pieces, the highest of each one's views: AUROC 100.0" in evaluation.table()
    assert json.loads(evaluation.to_json())["classes"]["nut"]["samples"]["n"] == 4
    assert evaluate(PaintedPredictor(), data.root, progress=False).classes["nut"].samples == {}


def test_blocks_of_the_ranking_change_nothing() -> None:
    rng = np.random.default_rng(5)
    good, defect = (np.sort(rng.integers(0, 50, n) / 7) for n in (400, 333))
    whole = ranking_metrics(defect, good)
    for block in (1, 2, 7, 100):
        parts = ranking_metrics(defect, good, block=block)
        assert parts.auroc == whole.auroc
        assert parts.average_precision == pytest.approx(whole.average_precision, abs=1e-12)
        assert (parts.f1_max, parts.f1_threshold) == (whole.f1_max, whole.f1_threshold)
        assert set(parts.roc) >= {(0.0, 0.0), (1.0, 1.0)}


def test_the_curves_have_the_areas_of_the_metrics(data: DataSet) -> None:
    data.add("tile", "dent", heat=40, count=9, size=(40, 30))
    data.add("tile", "good", count=9, size=(40, 30))
    found = _evaluated(data, "tile")
    for metric, curves in (
        ("image_auroc", found.image_curves),
        ("pixel_auroc", found.pixel_curves),
    ):
        assert curves is not None
        x, y = np.array(curves.roc).T
        assert float(np.diff(x) @ (y[1:] + y[:-1]) / 2) == pytest.approx(
            found.metrics[metric], abs=2e-3
        )
        assert len(curves.roc) < 2100
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()


def test_every_image_keeps_its_truth_and_decision(data: DataSet) -> None:
    data.add("nut", "dent", heat=100, count=2)
    data.add("nut", "good", count=2)
    found = _evaluated(data, "nut")
    assert [(i.name, i.kind, i.defect) for i in found.images] == [
        ("nut/test/dent/000.png", "dent", True),
        ("nut/test/dent/001.png", "dent", True),
        ("nut/test/good/000.png", "good", False),
        ("nut/test/good/001.png", "good", False),
    ]
    assert (found.n_found, found.n_flagged) == (
        sum(i.flagged for i in found.images if i.defect),
        0,
    )
    assert list(found.by_kind()) == ["good", "dent"]
    assert found.gallery is None, "no pictures are made unless a report is wanted"


class Unlimited(PaintedPredictor):
    """A model without thresholds."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return [
            Prediction(map=p.map, score=p.score, threshold=t, defect=False, class_name="nut")
            for p, t in zip(super().predict(images), [np.inf] * len(images), strict=True)
        ]


def test_a_report_needs_thresholds(data: DataSet, tmp_path: Path) -> None:
    data.add("nut", "good")
    evaluate(Unlimited(), data.root, progress=False)
    with pytest.raises(ConfigError, match="report, json_path: expected a model with a threshold"):
        evaluate(Unlimited(), data.root, report=tmp_path / "page.html", progress=False)


def test_the_hash_knows_names_contents_and_masks_but_not_the_place(tmp_path: Path) -> None:
    from mambaadv2.data.index import mvtec_records

    def digest(folder: str, heat: int, mask: bool = True) -> str:
        made = DataSet(tmp_path / folder)
        made.add("nut", "dent", heat=heat, mask=mask)
        made.add("nut", "good")
        return data_sha256(mvtec_records(made.root, split="test"))

    first = digest("a", 5)
    assert digest("b", 5) == first
    assert len({first, digest("c", 6), digest("d", 5, mask=False)}) == 3


def test_the_command_repeats_the_call() -> None:
    def typed(**changed: object) -> str:
        plain = dict.fromkeys(("classes", "json_path", "report", "title", "command", "time"))
        call = {**plain, "folder": Path("my run"), "data": Path("d"), "on_error": "stop"}
        return Call(**{**call, "device": "auto", **changed}).typed()  # type: ignore[arg-type]

    assert typed() == "mambaadv2 evaluate 'my run' d"
    assert typed(
        json_path=Path("n.json"), report=Path("r.html"), on_error="skip", device="cpu"
    ) == (
        "mambaadv2 evaluate 'my run' d --json n.json --report r.html --on-error skip --device cpu"
    )
    assert typed(classes=["a"]) == (
        "mambaadv2.evaluate('my run', 'd', classes=['a'], on_error='stop', device='auto')"
    )
    assert typed(folder=None).startswith("mambaadv2.evaluate(model, 'd'")
    assert typed(command="mambaadv2 demo") == "mambaadv2 demo"


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
    heads = "class   I-AUROC  I-AP  I-F1max  P-AUROC  P-AP  P-F1max  P-AUPRO   mAD  IoUmax"
    assert evaluation.table().splitlines() == [
        "Protocol exact, in percent",
        "",
        f"{heads}  good  defect",
        "nut        98.7  98.7     98.7     98.7  98.7     98.7     9"
        "8.7  98.7    98.7    41     119",
        "alien*     98.7  98.7     98.7        -     -        -      "
        "  -     -       -    18      60",
        "mean       98.7  98.7     98.7     98.7  98.7     98.7     9"
        "8.7  98.7    98.7    59     179",
        "",
        "* alien: no masks: undefined",
        "Mean P-AUROC, P-AP, P-F1max, P-AUPRO, mAD, IoUmax: without alien",
        EXACT.line(),
        "238 images in 12.3 s",
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that gives the painted predictor; its card is not looked at."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(MODULE, "load", lambda run, device: PaintedPredictor())
    monkeypatch.setattr("mambaadv2.provenance.read_card", lambda folder: (None, "ab12"))
    cards: list[Path] = []
    monkeypatch.setitem(
        sys.modules, "mambaadv2.modelcard", SimpleNamespace(write_model_card=cards.append)
    )
    monkeypatch.setattr("mambaadv2.modelcard", sys.modules["mambaadv2.modelcard"], raising=False)
    return folder


def test_a_run_folder_keeps_its_numbers(data: DataSet, run: Path) -> None:
    data.add("nut", "dent", heat=100)
    data.add("nut", "good")
    found = evaluate(run, data.root, progress=False)
    content = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert content["time_utc"].endswith("+00:00")
    assert len(content["data_sha256"]) == 64
    assert content["weights_sha256"] == "ab12"
    assert {name: content[name] for name in found.content()} == json.loads(found.to_json())
    assert content["classes"]["nut"]["n_good"] == 3


def test_an_evaluation_of_something_else_is_not_replaced_in_silence(
    data: DataSet, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data.add("nut", "dent", heat=100)
    data.add("nut", "good")
    evaluate(run, data.root)
    evaluate(run, data.root)
    assert "replaced" not in capfd.readouterr().err
    evaluate(run, data.root, protocol="ader")
    said = capfd.readouterr().err
    assert (
        f"{run}/evaluation.json: replaced, the earlier one was by protocol exact, of these" in said
    )
    data.add("nut", "good", count=4)
    evaluate(run, data.root, protocol="ader")
    assert "the earlier one was by protocol ader, of other images" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["calibration.json", "labelled.json"])
def test_images_that_chose_the_threshold_are_noted(data: DataSet, run: Path, name: str) -> None:
    data.add("nut", "dent", heat=100)
    data.add("nut", "good")
    image = data.root / "nut/test/good/001.png"
    rows = {"nut": [["other.png", hashlib.sha256(image.read_bytes()).hexdigest()]]}
    content = rows if name == "calibration.json" else {"aim": "f1", "images": rows}
    (run / name).write_text(json.dumps(content), encoding="utf-8")
    notes = evaluate(run, data.root, resampling=None, progress=False).classes["nut"].notes
    assert notes == (
        "1 of these images chose the thresholds (mambaadv2 calibrate): counts at the threshold "
        "and p-values are too good",
    )


def test_a_run_folder_that_cannot_be_written_to_is_no_error(
    data: DataSet, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    data.add("nut", "good")
    monkeypatch.setattr("mambaadv2.provenance.write_atomically", read_only)
    evaluate(run, data.root)
    said = capfd.readouterr().err
    assert said.count("\n") == 2  # the layout, and this
    assert str(run) in said
    assert not (run / "evaluation.json").exists()


def test_it_is_part_of_the_public_list() -> None:
    assert package_evaluate is evaluate
