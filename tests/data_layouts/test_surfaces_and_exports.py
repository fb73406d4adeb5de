"""KolektorSDD2, DAGM, ELPV, Datumaro and Lookout for Vision."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data_layouts.trees import (
    COLOURED,
    EMPTY,
    MARKED,
    dagm,
    datumaro,
    draw,
    elpv,
    kolektor,
    lookout,
    lookout_line,
    messages,
    short,
    write,
)

from mambaadv2.data.index import list_records
from mambaadv2.data.verify import read_masks, usable_records
from mambaadv2.errors import DataError
from mambaadv2.image import write_png


def test_kolektor_takes_labels_from_masks(tmp_path: Path) -> None:
    kolektor(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "10000.png", None),
        ("test", "defect", "20001.png", "20001_GT.png"),
        ("test", "good", "20000.png", None),
    ]
    assert found.notes[0].startswith(f"{tmp_path.name}: 1 defect image of train left out")
    # The answer is remembered, but not for a file that changed.
    write_png(tmp_path / "test/20000_GT.png", np.pad(MARKED, 4))
    assert short(list_records(tmp_path, split="test"))[0][1:] == (
        "defect",
        "20000.png",
        "20000_GT.png",
    )


def test_what_is_wrong_in_kolektor_is_named(tmp_path: Path) -> None:
    kolektor(tmp_path)
    test = tmp_path / "test"
    (test / "20000_GT.png").unlink()
    (test / "20001_GT.png").write_bytes(b"no image")
    write_png(test / "3_GT.png", EMPTY)
    found = list_records(tmp_path, split="test")
    assert found.records == ()
    assert messages(found)[0] == f"{test}/20000.png: has no mask; expected 20000_GT.png beside it"
    assert f"{test}/20001_GT.png: " in messages(found)[1]
    assert messages(found)[2].startswith(f"{test}/3_GT.png: is a mask without its image")
    assert "expected images of split 'test'" in messages(found)[3]
    assert list_records(tmp_path, split="train").problems == ()


def test_dagm(tmp_path: Path) -> None:
    dagm(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "0576.PNG", None),
        ("test", "defect", "0002.PNG", "0002_label.PNG"),
        ("test", "good", "0001.PNG", None),
    ]
    assert found.notes[0].startswith("Class1: 1 defect image of train left out")
    assert found.classes == {"Class1": tmp_path / "Class1"}
    # Some archives unpack to a folder in a folder.
    shutil.move(tmp_path / "Class1", tmp_path / "Class2/Class2")
    for split in ("Train", "Test"):
        (tmp_path / "Class2/Class2" / split / "Label/Labels.txt").unlink()
    nested = list_records(tmp_path)
    assert [record[1:] for record in short(nested)] == [record[1:] for record in short(found)]
    assert set(nested.classes) == {"Class2"}


def test_labels_and_masks_of_dagm_must_agree(tmp_path: Path) -> None:
    dagm(tmp_path)
    test = tmp_path / "Class1/Test"
    draw(test, "0003.PNG", "Label/0003_label.PNG", "Label/0009_label.PNG")
    labels = test / "Label/Labels.txt"
    labels.write_text(labels.read_text() + "\n3\t0\t0003.PNG\t0\t0\n4\tx\t0004.PNG\t0\t0\n")
    assert messages(list_records(tmp_path)) == [
        f"{labels}:5: expected 0 or 1 in column 2, found '4\\tx\\t0004.PNG\\t0\\t0'",
        f"{test}/0003.PNG: {labels} says that it is good, but its mask is there; correct one of "
        "them",
        f"{test}/Label/0009_label.PNG: is a mask without its image in {test}; add it or remove the "
        "mask",
    ]


def test_elpv(tmp_path: Path) -> None:
    elpv(tmp_path)
    found = list_records(tmp_path)
    assert set(found.classes) == {"mono", "poly"}
    assert found.notes == ("1 image with a probability above 0 and below 1/2 left out",)
    assert len(found.records) == 22
    for record in found.records:
        number = int(hashlib.sha256(record.path.name.encode()).hexdigest(), 16)
        place = int(record.path.stem.removeprefix("cell"))
        assert record.defect is (place > 21)
        assert (record.split == "test") is (record.defect or number % 5 == 0)
    # The PyPI package keeps them in data/.
    shutil.move(tmp_path / "images", tmp_path / "package/data/images")
    shutil.move(tmp_path / "labels.csv", tmp_path / "package/data/labels.csv")
    of_package = list_records(tmp_path / "package")
    assert (of_package.layout, len(of_package.records)) == ("elpv", 22)


@pytest.mark.parametrize(
    "line", ["images/cell0001.png x mono", "images/a.png 2 poly", "images/a.png"]
)
def test_a_wrong_line_of_elpv_is_named(tmp_path: Path, line: str) -> None:
    elpv(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text() + line + "\n")
    (text,) = messages(list_records(tmp_path))
    assert text == f"{table}:24: expected image, probability (0 to 1) and type, found {line!r}"


def test_datumaro(tmp_path: Path) -> None:
    datumaro(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "a.png", None),
        ("train", "good", "c.png", None),
        ("test", "Anomalous", "b.png", None),
    ]
    path = tmp_path / "annotations/default.json"
    assert found.notes == (f"{path}: shapes of 1 image are not read as masks",)
    assert list_records(path).records == found.records
    assert list_records(path).layout == "datumaro"
    # A subset's name says the split; then a defect for training is left out.
    path.rename(path.with_name("train.json"))
    (tmp_path / "images/default").rename(tmp_path / "images/train")
    renamed = list_records(tmp_path)
    assert {record.split for record in renamed.records} == {"train"}
    assert "1 defect image of train left out" in renamed.notes[-1]
    (tmp_path / "annotations/train.json").rename(tmp_path / "annotations/val.json")
    (tmp_path / "images/train").rename(tmp_path / "images/val")
    # Defects for validation stay: thresholds may be chosen there.
    validation = list_records(tmp_path, split="validation")
    assert [record.defect for record in validation.records] == [True, False, False]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "items[3]: expected an image's path or an id, found {}"),
        ({"id": 5}, "items[3]: expected an image's path or an id, found {'id': 5}"),
        ({"id": "x"}, "items[3]: expected a label_id of 0 to 1 for "),
        (
            {"id": "a", "annotations": [{"label_id": 2}], "image": {"path": "x.png"}},
            "x.png, found [2]; label the image or remove the item",
        ),
        (
            {"id": "x", "annotations": [{"label_id": 0}]},
            "images/default/x.jpg",  # Datumaro's own rule for items without a path
        ),
    ],
)
def test_a_wrong_item_of_datumaro_is_named(tmp_path: Path, item: Any, message: str) -> None:
    datumaro(tmp_path)
    path = tmp_path / "annotations/default.json"
    content = json.loads(path.read_text())
    content["items"].append(item)
    path.write_text(json.dumps(content))
    found = list_records(tmp_path)
    (text,) = messages(found)
    assert message in text
    assert text.startswith(f"{path}: items[3]: ")
    assert len(found.records) == 3
    content["categories"] = {"label": {}}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"expected categories\.label\.labels with names"):
        list_records(tmp_path)


def test_lookout(tmp_path: Path) -> None:
    lookout(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "a.png", None),
        ("test", "anomaly", "c.png", "c_seg.png"),
        ("test", "good", "b.png", None),
    ]
    assert found.records[1].mask_background == "#ffffff"


def test_a_mask_on_white_marks_what_is_not_white(tmp_path: Path) -> None:
    lookout(tmp_path)
    (record,) = (r for r in usable_records(tmp_path, split="test").records if r.masks)
    mask = read_masks(record)
    np.testing.assert_array_equal(mask, np.any(COLOURED != 255, axis=2))
    assert mask is not None
    assert mask.sum() == 1


def test_one_manifest_of_lookout_is_divided_by_its_labels(tmp_path: Path) -> None:
    lookout(tmp_path)
    text = (tmp_path / "train.manifest").read_text() + (tmp_path / "test.manifest").read_text()
    for name in ("output.manifest", "board.jsonl", "lines.json"):
        write(tmp_path, name, text)
        found = list_records(tmp_path / name)
        assert found.layout == "lookout"
        assert [(r.split, r.path.name) for r in found.records] == [
            *(("train", "b.png"), ("train", "a.png")),
            ("test", "c.png"),
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected an object with source-ref and a classification with its -metadata"),
        ("[1]", "expected an object with source-ref"),
        ('{"source-ref": "s3://b/a.png"}', "expected an object with source-ref"),
        (lookout_line("gone.png", "normal").strip(), "/board/gone.png"),
        (lookout_line("test/b.png", "normal").strip(), "b.png is at "),
    ],
)
def test_a_wrong_line_of_lookout_is_named(tmp_path: Path, line: str, message: str) -> None:
    lookout(tmp_path)
    path = tmp_path / "test.manifest"
    path.write_text(path.read_text() + "\n" + line + "\n")
    found = list_records(tmp_path)
    (text,) = messages(found)
    assert text.startswith(f"{path}:4: ")
    assert message in text
    assert len(found.records) == 3


@pytest.mark.parametrize("name", ["mytest", "testset", "trainset-2", "train_test"])
def test_a_name_that_only_seems_to_say_a_split_is_refused(tmp_path: Path, name: str) -> None:
    lookout(tmp_path)
    (tmp_path / "test.manifest").rename(tmp_path / f"{name}.manifest")
    with pytest.raises(DataError, match=rf"{name}\.manifest: expected .*rename the file"):
        list_records(tmp_path / f"{name}.manifest")


def test_two_images_of_one_number_in_kolektor_are_named(tmp_path: Path) -> None:
    kolektor(tmp_path)
    image = next(p for p in sorted((tmp_path / "test").iterdir()) if "_GT" not in p.stem)
    shutil.copy(image, image.with_suffix(".bmp"))
    (text,) = messages(list_records(tmp_path, split="test"))
    assert "keep the right one" in text
    assert image.stem in text


def test_folders_beside_plain_ones_are_said_to_be_ignored(tmp_path: Path) -> None:
    for name in ("a/good/0.png", "a/dent/1.png", "b/dent/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    found = list_records(tmp_path)
    assert {record.class_name for record in found.records} == {"a"}
    assert found.ignored == (tmp_path / "b",)


def test_a_class_whose_name_has_two_lines_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "nu\nt" / "train" / "good"
    folder.mkdir(parents=True)
    write_png(folder / "0.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"in one line, found 'nu\\nt'; rename it"):
        list_records(tmp_path)
