"""VisA, Real-IAD and ADer's meta.json: lists that name images, and what can be wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data_layouts.trees import (
    ader,
    ader_content,
    coco_ad,
    draw,
    messages,
    real_iad,
    short,
    visa,
    write,
)

from mambaadv2.data.index import list_records
from mambaadv2.data.samples import by_sample
from mambaadv2.errors import DataError


def test_visa(tmp_path: Path) -> None:
    visa(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "0000.JPG", None),
        ("test", "anomaly", "000.JPG", "000.png"),
        ("test", "good", "0001.JPG", None),
    ]
    table = tmp_path / "split_csv/1cls.csv"
    assert found.classes == {"candle": table}
    of_file = list_records(table)
    assert (of_file.layout, of_file.records) == ("visa", found.records)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("candle,train,normal", "expected object, split (train, test), label (normal, anomaly)"),
        ("candle,val,normal,a.JPG,", "found ['candle', 'val', 'normal', 'a.JPG', '']"),
        ("candle,test,bent,a.JPG,", "found ['candle', 'test', 'bent', 'a.JPG', '']"),
        ("candle,test,normal,gone.JPG,", "image: expected a file, found nothing of that name"),
        ("candle,test,normal,candle,", "image: expected a file, found a folder"),
        (
            "candle,test,normal,candle/Data/Images/Normal/0000.JPG,",
            "0000.JPG is at {table}:2 already; remove one of them",
        ),
        (
            "candle,test,anomaly,x.JPG,",
            "x.JPG has no mask, although other defect images of class 'candle' have one",
        ),
        ("candle,test,anomaly,x.JPG,m.png", "mask: expected a file, found nothing of that name"),
    ],
)
def test_a_wrong_line_of_visa_is_named(tmp_path: Path, line: str, message: str) -> None:
    visa(tmp_path)
    draw(tmp_path, "x.JPG")
    table = tmp_path / "split_csv/1cls.csv"
    table.write_text(table.read_text() + "\n" + line + "\n")
    found = list_records(tmp_path)
    (text,) = messages(found)
    assert text.startswith(f"{table}:6: ")
    assert message.format(table=table) in text
    assert len(found.records) == 3


def test_a_defect_for_training_is_left_out_and_counted(tmp_path: Path) -> None:
    visa(tmp_path)
    table = tmp_path / "split_csv/1cls.csv"
    table.write_text(table.read_text().replace("test,anomaly", "train,anomaly"))
    found = list_records(tmp_path)
    assert found.problems == ()
    assert found.notes == (
        "candle: 1 defect image of train left out, because training may see good images only",
    )
    assert [record.defect for record in found.records] == [False, False]


def test_visa_needs_its_columns(tmp_path: Path) -> None:
    write(tmp_path, "split_csv/1cls.csv", "object,image\n")
    with pytest.raises(DataError, match=r"1cls\.csv: expected the columns object, split, label, "):
        list_records(tmp_path, layout="visa")
    with pytest.raises(DataError, match=r"expected the columns .*, found object, image"):
        list_records(tmp_path / "split_csv/1cls.csv", layout="visa")
    (problem,) = list_records(tmp_path / "split_csv/1cls.csv", layout="csv").problems[:1]
    assert "expected the columns path, class, split, label" in problem.message


def test_real_iad(tmp_path: Path) -> None:
    real_iad(tmp_path)
    found = list_records(tmp_path)
    assert [(r.split, r.defect_type, r.sample, r.view) for r in found.records] == [
        ("train", "good", "OK/S0001", "C1"),
        ("train", "good", "OK/S0001", "C2"),
        ("test", "BX", "NG/BX/S0007", "C1"),
        ("test", "good", "NG/BX/S0007", "C2"),
        ("test", "good", "OK/S0002", "C1"),
    ]
    defect = found.records[2]
    assert defect.mask == defect.path.with_name("usb_0007_NG_BX_C1_2023_mask.png")
    assert found.classes == {"usb": tmp_path / "realiad_jsons/usb.json"}
    # One of several sizes is passed itself, the splits lie beside it.
    real_iad(tmp_path, "realiad_256")
    with pytest.raises(DataError, match=r"found realiad_1024, realiad_256; pass that folder"):
        list_records(tmp_path)
    small = list_records(tmp_path / "realiad_256")
    assert small.layout == "real-iad"
    assert {record.path.parts[-5] for record in small.records[:2]} == {"realiad_256"}


def test_real_iad_unpacked_in_other_ways(tmp_path: Path) -> None:
    real_iad(tmp_path / "a", jsons="realiad_jsons/realiad_jsons")
    real_iad(tmp_path / "b", size=".", jsons=".")  # as ADer has it: usb.json beside usb/
    for name in "ab":
        found = list_records(tmp_path / name)
        assert (found.layout, len(found.records), found.problems) == ("real-iad", 5, ())
    real_iad(tmp_path / "c")
    real_iad(tmp_path / "c", jsons="realiad_jsons_sv")
    assert list_records(tmp_path / "c").layout == "real-iad"
    single = list_records(tmp_path / "c", layout="real-iad-sv")
    assert single.classes == {"usb": tmp_path / "c/realiad_jsons_sv/usb.json"}


def test_what_is_wrong_in_a_split_of_real_iad_is_named(tmp_path: Path) -> None:
    real_iad(tmp_path)
    path = tmp_path / "realiad_jsons/usb.json"
    content = json.loads(path.read_text())
    content["test"] += [7, {"anomaly_class": "OK"}, {"anomaly_class": "OK", "image_path": 5}]
    content["train"].append({"anomaly_class": "AK", "image_path": "x.jpg", "mask_path": None})
    path.write_text(json.dumps(content))
    found = list_records(tmp_path)
    assert messages(found) == [
        f"{path}: test[3]: expected an object, found 7",
        f"{path}: test[4]: image_path: expected a text, found nothing",
        f"{path}: test[5]: image_path: expected a text, found 5",
    ]
    assert len(found.records) == 5
    assert found.notes[0].startswith("usb: 1 defect image of train left out")
    path.write_text('{"anomaly_class": ')
    (problem, *_) = list_records(tmp_path).problems
    assert problem.message.startswith(f"{path}: expected JSON text (")


def test_scores_of_pieces_are_their_worst_view(tmp_path: Path) -> None:
    real_iad(tmp_path)
    records = list_records(tmp_path, split="test").records
    labels, scores = by_sample(records, [0.3, 0.9, 0.2])
    assert labels.tolist() == [True, False]
    assert scores.tolist() == [0.9, 0.2]
    visa(tmp_path / "visa")
    with pytest.raises(ValueError, match=r"0000.JPG: expected a record with a sample"):
        by_sample(list_records(tmp_path / "visa", split="train").records, [0.1])
    with pytest.raises(ValueError, match="expected 3 scores, got 1"):
        by_sample(records, [0.1])


def test_ader(tmp_path: Path) -> None:
    ader(tmp_path)
    found = list_records(tmp_path)
    assert short(found) == [
        ("train", "good", "a.png", None),
        ("train", "good", "b.png", None),
        ("validation", "good", "v.png", None),
        ("test", "anomaly", "d.png", "d.png"),
        ("test", "cut", "e.png", "e.png"),
        ("test", "good", "c.png", None),
    ]
    of_file = list_records(tmp_path / "meta.json")
    assert (of_file.layout, of_file.records) == ("ader", found.records)
    # As ADer trains on MVTec 3D-AD and LOCO.
    assert len(list_records(tmp_path, split="train", validation="train").records) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_path": None}, "img_path: expected a text, found nothing"),
        ({"img_path": ""}, "img_path: expected a text, found ''"),
        ({"img_path": "a\0"}, "img_path: expected a text, found 'a\\x00'"),
        ({"cls_name": 3}, "cls_name: expected a text, found 3"),
        ({"anomaly": 2}, "anomaly: expected 0 or 1, found 2"),
        ({"mask_path": 1}, "mask_path: expected a text, found 1"),
        ({"specie_name": []}, "specie_name: expected a text, found []"),
        ({"img_path": "nut/gone.png"}, "image: expected a file, found nothing of that name"),
        ({"img_path": "nut/x.dcm"}, ".dcm, which cannot be read"),
    ],
)
def test_a_wrong_entry_of_ader_is_named(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    content = ader_content(tmp_path)
    content["test"]["nut"][0] |= fields
    write(tmp_path, "meta.json", json.dumps(content))
    found = list_records(tmp_path)
    (text,) = messages(found)
    assert message in text
    assert "nut/x.dcm" in text or text.startswith(f"{tmp_path}/meta.json: test.nut[0]: ")
    assert len(found.records) == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": []}', "\xff", "[" * 100_000])
def test_what_is_no_list_of_ader_is_one_error(tmp_path: Path, text: str) -> None:
    write(tmp_path, "meta.json", text)
    with pytest.raises(DataError, match=r"meta\.json: expected "):
        list_records(tmp_path, layout="ader")


def test_a_class_without_images_of_a_split_is_named(tmp_path: Path) -> None:
    content = ader_content(tmp_path)
    del content["train"]
    write(tmp_path, "meta.json", json.dumps(content))
    (text,) = messages(list_records(tmp_path))
    assert (
        text
        == f"{tmp_path}/meta.json: expected images of split 'train' for class 'nut', found none"
    )
    assert list_records(tmp_path, split="test").problems == ()


def test_coco_ad_is_one_data_set_per_split(tmp_path: Path) -> None:
    coco_ad(tmp_path)
    found = list_records(tmp_path)
    assert (found.layout, found.reason) == ("coco-ad", "meta_20_2.json")
    write(tmp_path, "meta_20_0.json", (tmp_path / "meta_20_2.json").read_text())
    with pytest.raises(DataError, match=r"found .*meta_20_0\.json, .*meta_20_2\.json; each is a"):
        list_records(tmp_path)
    assert list_records(tmp_path / "meta_20_0.json").records == found.records
    assert list_records(tmp_path / "meta_20_0.json").layout == "coco-ad"


def test_the_single_view_splits_are_not_taken_from_those_of_all_views(tmp_path: Path) -> None:
    real_iad(tmp_path)
    splits = next(path for path in tmp_path.rglob("*.json"))
    arranged = tmp_path / "realiad_1024"
    splits.rename(arranged / splits.name)
    assert list_records(arranged, layout="real-iad").records
    with pytest.raises(DataError, match=r"expected realiad_jsons_sv/<class>\.json"):
        list_records(arranged, layout="real-iad-sv")


def test_a_manifest_s_name_says_its_kind(tmp_path: Path) -> None:
    write(tmp_path, "m.jsonl", "")
    with pytest.raises(DataError, match=r"m\.jsonl: expected a file that ends with \.csv"):
        list_records(tmp_path / "m.jsonl", layout="csv")


def test_a_field_that_no_table_has_is_one_error(tmp_path: Path) -> None:
    visa(tmp_path)
    table = tmp_path / "split_csv/1cls.csv"
    with table.open("a", encoding="utf-8") as file:
        file.write("x" * 200_000 + ",train,normal,a.png,\n")
    with pytest.raises(DataError, match=r"1cls\.csv: expected VisA's table"):
        list_records(tmp_path)
