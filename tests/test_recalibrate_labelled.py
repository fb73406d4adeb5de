"""Thresholds from a validation split with defects: what changes, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mambaadv2 import cli
from mambaadv2.calibrate import LabelledScores, threshold_for_cost, threshold_for_f1
from mambaadv2.checkpoint import read_card
from mambaadv2.data.index import list_records
from mambaadv2.data.manifest import write_manifest
from mambaadv2.data.record import Record
from mambaadv2.data.synthetic import generate
from mambaadv2.errors import BadFilesError, ConfigError, DataError
from mambaadv2.image import read_image
from mambaadv2.predict import load, predict_to_folder
from mambaadv2.recalibrate import recalibrate
from mambaadv2.recalibrate_labelled import labelled_words, recalibrate_labelled
from mambaadv2.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two classes, and a run on it."""
    root = tmp_path_factory.mktemp("labelled")
    generate(root / "data", size=64, train=5, good=8, defect=4)
    train(root / "data", root / "run", epochs=2, image_size=64, progress=False, device="cpu")
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


Write = Callable[..., Path]


@pytest.fixture
def manifest(made: Path, tmp_path: Path) -> Write:
    """Write a manifest whose validation split is what `wanted` chooses of the test images."""

    def write(wanted: Callable[[int, Record], bool], also: tuple[Record, ...] = ()) -> Path:
        tests = list_records(made / "data", split="test").records
        records = [
            dataclasses.replace(record, split="validation") if wanted(i, record) else record
            for i, record in enumerate(tests)
        ]
        write_manifest([*records, *also], tmp_path / "parts.csv")
        return tmp_path / "parts.csv"

    return write


def half(i: int, record: Record) -> bool:
    return i % 2 == 0


def truth_and_scores(run: Path, data: Path) -> dict[str, LabelledScores]:
    """By class that the model finds, of the validation split."""
    records = list_records(data, split="validation").records
    found = load(run, device="cpu").predict([read_image(r.path) for r in records])
    names = sorted({p.class_name for p in found})
    return {
        name: LabelledScores(
            scores=np.array([p.score for p in found if p.class_name == name]),
            defects=np.array(
                [r.defect for r, p in zip(records, found, strict=True) if p.class_name == name]
            ),
            split="validation",
        )
        for name in names
    }


def test_the_threshold_serves_the_aim_and_says_so(
    run: Path, manifest: Write, tmp_path: Path
) -> None:
    data, (before, weights) = manifest(half), read_card(run)
    found = recalibrate_labelled(run, data, aim="f1", device="cpu")
    after, same = read_card(run)
    assert same == weights
    known = truth_and_scores(run, data)
    assert set(found) == set(after.classes) == set(known)
    for name, made in found.items():
        wanted = threshold_for_f1(known[name])
        assert made.threshold == pytest.approx(wanted.threshold, rel=1e-4)
        assert (made.recall, made.false_alarms) == (wanted.recall, wanted.false_alarms)
        assert after.thresholds[name] == made.threshold
        assert after.calibration_kinds[name] == "labelled"
        assert after.calibration(name) is None
        assert after.threshold_sentence(name) == made.sentence
    # What good images say stays.
    assert after.calibration_scores == before.calibration_scores
    assert after.leave_one_out == before.leave_one_out
    low, high = after.colour_scale
    assert 0 <= low < 1 < high
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| labelled | no promise |" in card
    assert "Chosen for best F1 on the split validation" in card
    kept = json.loads((run / "labelled.json").read_text(encoding="utf-8"))
    assert kept["aim"] == "f1"
    records = list_records(data, split="validation").records
    assert sum(map(len, kept["images"].values())) == len(records)
    # Predictions say it too.
    predict_to_folder(run, [str(records[0].path)], tmp_path / "out", device="cpu", progress=False)
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["threshold_kind"] == "labelled"
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert settings["threshold_rules"] == {name: made.sentence for name, made in found.items()}


def test_the_command_says_it(
    run: Path, manifest: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data = manifest(half)
    flags = ["--labelled", str(data), "--aim", "cost=20,defects=0.01", "--device", "cpu"]
    assert cli.main(["calibrate", str(run), *flags]) == 0
    said, (card, _) = capsys.readouterr().out, read_card(run)
    for name, known in truth_and_scores(run, data).items():
        wanted = threshold_for_cost(known, miss=20.0, false_alarm=1.0, defect_share=0.01)
        assert card.thresholds[name] == pytest.approx(wanted.threshold, rel=1e-4)
        assert f"{name}: threshold {card.thresholds[name]:.6g}\n  {wanted.sentence}\n" in said
    assert "Chosen for least cost at 20 per miss" in said


def test_good_images_take_the_thresholds_back(made: Path, run: Path, manifest: Write) -> None:
    recalibrate_labelled(run, manifest(half), aim="f1", device="cpu")
    recalibrate(run, [str(made / "data" / "*" / "test" / "good")], rate=0.2, device="cpu")
    card, _ = read_card(run)
    assert "labelled" not in card.calibration_kinds.values()
    assert card.calibration_labelled == {}
    assert not (run / "labelled.json").exists()


def test_a_class_without_defects_keeps_its_threshold(run: Path, manifest: Write) -> None:
    before, _ = read_card(run)
    classes = [name for name, k in truth_and_scores(run, manifest(half)).items()]
    data = manifest(lambda i, r: half(i, r) and not (r.defect and r.class_name == classes[0]))
    labels: dict[str, set[bool]] = {}
    for record in list_records(data, split="validation").records:
        (taken,) = load(run, device="cpu").predict([read_image(record.path)])
        labels.setdefault(taken.class_name, set()).add(record.defect)
    wanted = {name for name, both in labels.items() if both == {True, False}}
    found = recalibrate_labelled(run, data, aim="f1", device="cpu")
    assert set(found) == wanted
    assert wanted < set(before.classes)
    after, _ = read_card(run)
    for name in set(before.classes) - wanted:
        assert after.thresholds[name] == before.thresholds[name]
        assert after.calibration_kinds[name] == before.calibration_kinds[name]
        assert after.calibration(name) == before.calibration(name)
        words = "\n".join(labelled_words(run, found))
        assert f"{name}: threshold {before.thresholds[name]:.6g} kept" in words


def refused(run: Path, data: Path, error: type[Exception], words: str, aim: str = "f1") -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(error, match=words):
        recalibrate_labelled(run, data, aim=aim, device="cpu")
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_the_test_split_is_refused(made: Path, run: Path, manifest: Write) -> None:
    words = (
        "in the split validation, found 0 and 0, and [1-9][0-9]* defects in the split test; .* set "
        "some good images and some defects apart, in a manifest"
    )
    refused(run, made / "data", DataError, words)
    refused(run, manifest(lambda i, r: False), DataError, words)
    good = manifest(lambda i, r: not r.defect)
    refused(run, good, DataError, "found [1-9][0-9]* and 0, and [1-9][0-9]* defects in the split")


def test_an_image_of_the_training_is_refused(made: Path, run: Path, manifest: Write) -> None:
    seen = list_records(made / "data", split="train").records[0]
    copied = run.parent / "copy.png"
    shutil.copy(seen.path, copied)
    also = dataclasses.replace(seen, path=copied, split="validation")
    refused(run, manifest(half, (also,)), DataError, r"copy\.png: expected an image .* not seen")


def test_a_copy_of_a_test_image_is_refused(made: Path, run: Path, manifest: Write) -> None:
    tests = list_records(made / "data", split="test").records
    tested = next(r for i, r in enumerate(tests) if not half(i, r) and not r.defect)
    copied = run.parent / "copy.png"
    shutil.copy(tested.path, copied)
    also = dataclasses.replace(tested, path=copied, split="validation")
    refused(run, manifest(half, (also,)), DataError, r"copy\.png: expected an image that is not in")


def test_a_bad_file_is_refused(run: Path, manifest: Write) -> None:
    data = manifest(half)
    broken = run.parent / "broken.png"
    broken.write_bytes(b"no image")
    text = data.read_text()
    line = next(line for line in text.splitlines() if "validation" in line and "good" in line)
    path = line.split(",")[0]
    data.write_text(text.replace(path, str(broken), 1))
    refused(run, data, BadFilesError, r"broken\.png")
    recalibrate_labelled(run, data, aim="f1", device="cpu", on_error="skip")
    kept = json.loads((run / "labelled.json").read_text(encoding="utf-8"))
    records = list_records(data, split="validation").records
    assert sum(map(len, kept["images"].values())) == len(records) - 1


def test_an_aim_that_cannot_be_is_refused(run: Path, manifest: Write) -> None:
    data = manifest(half)
    refused(
        run, data, ConfigError, "class .*: recall: 99 % needs at least 99 defects", "recall=0.99"
    )
    refused(run, data, ConfigError, "aim: expected f1", "best")


def test_classes_of_another_model_are_refused(run: Path, manifest: Write) -> None:
    data = manifest(half)
    text = data.read_text()
    for name in read_card(run)[0].classes:
        text = text.replace(f",{name},", f",other-{name},")
    data.write_text(text)
    refused(run, data, DataError, "expected classes of the model, ")


def test_a_copy_in_the_split_counts_once_and_has_one_label(run: Path, manifest: Write) -> None:
    data = manifest(half)
    records = list_records(data, split="validation").records
    defect = next(record for record in records if record.defect)
    copied = run.parent / "copy.png"
    shutil.copy(defect.path, copied)
    twice = manifest(half, (dataclasses.replace(defect, path=copied),))
    recalibrate_labelled(run, twice, aim="f1", device="cpu")
    kept = json.loads((run / "labelled.json").read_text(encoding="utf-8"))
    assert sum(map(len, kept["images"].values())) == len(records)
    text = twice.read_text().splitlines()
    odd = [
        ",".join([line.split(",")[0], line.split(",")[1], "validation", "good", ""])
        if "copy.png" in line
        else line
        for line in text
    ]
    twice.write_text("\n".join(",".join(line.split(",")[:5]) for line in odd) + "\n")
    refused(run, twice, DataError, "expected one label for one image")


def test_new_thresholds_leave_an_evaluation_readable_and_marked(run: Path, manifest: Write) -> None:
    content = {"schema": 2, "classes": {"nut": {"mad": 0.5, "n_flagged": 1, "n_found": 2, "x": []}}}
    path = run / "evaluation.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    recalibrate_labelled(run, manifest(half), aim="f1", device="cpu")
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "thresholds_replaced": True,
        "schema": 2,
        "classes": {"nut": {"mad": 0.5, "x": []}},
    }
    assert text.splitlines()[1] == '  "thresholds_replaced": true,'
