"""What holds for all layouts: they are recognised with a reason, listed, checked and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data_layouts.trees import TREES, ader, btad, draw, mvtec, plain, visa, write

from mambaadv2.data.check import check_data
from mambaadv2.data.index import list_records
from mambaadv2.data.layouts import LAYOUTS
from mambaadv2.data.record import SPLITS, Split
from mambaadv2.data.verify import usable_records
from mambaadv2.errors import DataError

FILES = {"csv", "jsonl", "parquet"}  # lists as files; tests/test_manifest.py is about them

each_layout = pytest.mark.parametrize("layout", sorted(TREES))


def test_every_layout_has_a_tree_or_is_a_file() -> None:
    assert set(TREES) | FILES == set(LAYOUTS)


@each_layout
def test_it_is_recognised_and_named_alike(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    found = list_records(tmp_path)
    assert found.layout == layout
    assert found.reason not in ("", "as named", "nothing tells of another layout")
    named = list_records(tmp_path, layout=layout)
    assert (named.layout, named.reason) == (layout, "as named")
    assert named.records == found.records
    assert found.problems == named.problems == ()


@each_layout
def test_its_records_are_whole(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    records = list_records(tmp_path).records
    assert len({record.path for record in records}) == len(records)
    assert {record.split for record in records} >= {"train", "test"}
    for record in records:
        assert record.path.is_file()
        assert all(mask.is_file() for mask in record.masks)
        assert record.defect is (record.defect_type != "good")
        assert not (record.masks and not record.defect)
        assert not (record.defect and record.split == "train")
    order = [
        (record.class_name, SPLITS.index(record.split), record.defect_type, record.path)
        for record in records
    ]
    assert order == sorted(order)


@each_layout
def test_its_splits_are_parts_of_the_whole(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    whole = list_records(tmp_path)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        part = list_records(tmp_path, split=split)
        assert part.problems == ()
        assert part.records == tuple(r for r in whole.records if r.split == split)
    validation = tuple(r for r in whole.records if r.split == "validation")
    assert list_records(tmp_path, split="validation").records == validation
    assert bool(list_records(tmp_path, split="validation").problems) is not bool(validation)


@each_layout
def test_validation_goes_to_training_only_when_asked(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    apart = list_records(tmp_path)
    merged = list_records(tmp_path, validation="train")
    assert {r.path for r in merged.records} == {r.path for r in apart.records}
    assert {r.split for r in merged.records} == {"train", "test"}
    kept = {r.path for r in apart.records if r.split == "validation"}
    train = {r.path for r in list_records(tmp_path, split="train").records}
    both = {r.path for r in list_records(tmp_path, split="train", validation="train").records}
    assert both - train == kept
    assert kept.isdisjoint(train)
    test = list_records(tmp_path, split="test", validation="train").records
    assert {r.path for r in test} == {r.path for r in apart.records if r.split == "test"}


@each_layout
def test_check_and_the_usable_records_cover_it(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES[layout](tmp_path)
    report = check_data(tmp_path, layout=layout, progress=False)
    assert not [finding for finding in report.findings if finding.severity == "error"]
    assert sum(part.images for part in report.parts) == len(report.listing.records)
    assert f"layout: {layout} (as named)" in report.text()
    assert not [f for f in report.findings if f.kind in ("empty_mask", "full_mask")]
    chosen = usable_records(tmp_path, split="test")
    assert chosen.skipped == ()
    assert chosen.records == list_records(tmp_path, split="test").records
    assert f"data: layout {layout} ({chosen.reason})" in capsys.readouterr().err


@pytest.mark.parametrize("layout", sorted(set(TREES) - {"elpv", "datumaro"}))
def test_a_missing_mask_is_named_and_the_rest_is_listed(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    whole = list_records(tmp_path).records
    masked = next(record for record in whole if record.masks)
    for mask in masked.masks:
        mask.unlink()
    found = list_records(tmp_path)
    assert found.records == tuple(record for record in whole if record is not masked)
    (problem,) = found.problems
    assert "mask" in problem.message or "expected images" in problem.message
    names = {masked.path.name, masked.masks[0].name, masked.masks[0].parent.name}
    assert any(name in problem.message for name in names)
    assert str(problem.path).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "layout", ["visa", "real-iad", "coco-ad", "ader", "elpv", "datumaro", "lookout"]
)
def test_a_missing_image_of_a_list_is_named_with_its_place(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    whole = list_records(tmp_path).records
    gone = whole[0].path
    gone.unlink()
    found = list_records(tmp_path)
    assert found.records == whole[1:]
    (problem,) = found.problems
    assert problem.path.name == gone.name
    assert "image: expected a file, found nothing of that name" in problem.message
    assert problem.message.split(": image")[0].split(":")[-1].strip() != ""


@each_layout
def test_an_unknown_class_is_named(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    with pytest.raises(DataError, match="no class 'none of them'"):
        list_records(tmp_path, classes=["none of them"])
    name = list_records(tmp_path).records[0].class_name
    chosen = list_records(tmp_path, classes=[name])
    assert {record.class_name for record in chosen.records} == {name}


@each_layout
def test_an_empty_folder_is_no_data_set_of_it(layout: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/empty.*: expected "):
        list_records(tmp_path / "empty", layout=layout)


def test_names_of_layouts(tmp_path: Path) -> None:
    mvtec(tmp_path)
    with pytest.raises(DataError, match=r"no layout 'mvtek' \(did you mean 'mvtec'\?\)"):
        list_records(tmp_path, layout="mvtek")
    with pytest.raises(DataError, match="gone: expected a data set, found nothing of that name"):
        list_records(tmp_path / "gone", layout="mvtec")
    with pytest.raises(DataError, match='validation: expected "apart" or "train"'):
        list_records(tmp_path, validation="both")  # type: ignore[arg-type]


def test_what_fits_twice_is_refused_with_both_names(tmp_path: Path) -> None:
    mvtec(tmp_path)
    ader(tmp_path)
    with pytest.raises(DataError) as caught:
        list_records(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}: 2 layouts fit:\n  mvtec: train/good/ or test/good/ in nut")
    assert '\n  ader: meta.json with "img_path" entries\n' in text
    assert "--layout mvtec" in text
    assert list_records(tmp_path, layout="ader").layout == "ader"
    assert len(list_records(tmp_path, layout="mvtec").records) == 4


def test_classes_of_two_layouts_and_two_lists_are_refused(tmp_path: Path) -> None:
    mvtec(tmp_path / "a")
    btad(tmp_path / "a")
    with pytest.raises(DataError, match=r"(?s)2 layouts fit:.*btad: .*mvtec: |mvtec: .*btad: "):
        list_records(tmp_path / "a")
    visa(tmp_path / "b")
    ader(tmp_path / "b")
    with pytest.raises(DataError, match=r"(?s)2 layouts fit:.*visa: .*ader: "):
        list_records(tmp_path / "b")


def test_one_class_of_a_data_set_is_recognised_too(tmp_path: Path) -> None:
    for layout in ("mvtec", "mvtec-ad2", "mvtec-loco", "mvtec-3d", "btad"):
        TREES[layout](tmp_path / layout)
        for folder in (tmp_path / layout).iterdir():
            found = list_records(folder)
            assert (found.layout, set(found.classes)) == (layout, {folder.name})
            assert found.problems == ()


def test_a_part_of_a_data_set_is_not_taken_for_plain_folders(tmp_path: Path) -> None:
    mvtec(tmp_path)
    with pytest.raises(DataError, match=r"found good/ directly in it.*--layout with one of mvtec"):
        list_records(tmp_path / "nut/test")
    plain(tmp_path / "test")
    assert list_records(tmp_path / "test", layout="folder").problems == ()


def test_a_folder_of_images_has_to_be_named(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    with pytest.raises(DataError, match=r"found 2 image\(s\) directly in it"):
        list_records(tmp_path)
    found = list_records(tmp_path, layout="folder")
    assert [(r.split, r.path.name) for r in found.records] == [
        ("train", "a.png"),
        ("train", "b.png"),
    ]
    assert list_records(tmp_path, layout="folder", split="test").problems


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.json", "{}"), ("a.txt", "x"), ("a.manifest", "{}"), ("b.json", "")):
        write(tmp_path, name, text)
        with pytest.raises(
            DataError, match=rf"{name}: expected the folder of a data set or a list"
        ):
            list_records(tmp_path / name)
