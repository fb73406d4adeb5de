"""The MVTec layout: every well-formed folder is listed, every other one gets a helpful error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.errors import DataError


def touch(*paths: Path) -> None:
    """Empty files: the index must not open any image."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_class(folder: Path) -> Path:
    touch(
        folder / "train/good/001.png",
        folder / "train/good/000.JPG",
        folder / "train/good/.hidden.png",
        folder / "train/good/notes.txt",
        folder / "test/good/000.tiff",
        folder / "test/cut/000.png",
        folder / "test/cut/001.bmp",
        folder / "test/stain/000.WebP",
        folder / "ground_truth/cut/000_mask.png",
        folder / "ground_truth/cut/001.PNG",
        folder / "ground_truth/stain/000_mask.tif",
    )
    return folder


def short(record: Record) -> tuple[str, str, bool, str, str, str | None]:
    mask = record.mask.name if record.mask else None
    kind = record.defect_type
    return (record.class_name, record.split, record.defect, kind, record.path.name, mask)


NUT = [
    ("nut", "train", False, "good", "000.JPG", None),
    ("nut", "train", False, "good", "001.png", None),
    ("nut", "test", True, "cut", "000.png", "000_mask.png"),
    ("nut", "test", True, "cut", "001.bmp", "001.PNG"),
    ("nut", "test", False, "good", "000.tiff", None),
    ("nut", "test", True, "stain", "000.WebP", "000_mask.tif"),
]


def test_one_class(tmp_path: Path) -> None:
    nut = make_class(tmp_path / "nut")
    records = mvtec_records(nut)
    assert [short(record) for record in records] == NUT
    assert all(record.path.is_file() for record in records)
    assert all(record.mask.is_file() for record in records if record.mask)
    assert records[2].mask == nut / "ground_truth/cut/000_mask.png"
    assert mvtec_records(str(nut), classes=["nut"]) == records


def test_many_classes_sorted_and_chosen(tmp_path: Path) -> None:
    for name in ("wood", "nut", "carpet"):
        make_class(tmp_path / name)
    touch(tmp_path / "readme.txt", tmp_path / "papers/a.pdf", tmp_path / ".cache/train/good/0.png")
    records = mvtec_records(tmp_path)
    assert [record.class_name for record in records[::6]] == ["carpet", "nut", "wood"]
    assert len(records) == 18
    assert mvtec_records(tmp_path, classes=("wood", "nut", "wood")) == records[6:]


def test_splits(tmp_path: Path) -> None:
    nut = make_class(tmp_path / "nut")
    both = mvtec_records(nut)
    assert mvtec_records(nut, split="train") == both[:2]
    assert mvtec_records(nut, split="test") == both[2:]
    with pytest.raises(DataError, match=r'expected "train", "test" or None'):
        mvtec_records(nut, split="valid")  # type: ignore[arg-type]


def test_the_name_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_class(tmp_path / "nut"))
    assert {record.class_name for record in mvtec_records(".")} == {"nut"}


def test_train_never_lists_test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nut", "wood"):
        make_class(tmp_path / name)
    listed: list[Path] = []
    scandir = os.scandir

    def spy(path: Path) -> Iterator[os.DirEntry[str]]:
        listed.append(Path(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    assert len(mvtec_records(tmp_path, split="train", classes=["wood"])) == 2
    assert listed == [tmp_path, tmp_path / "wood/train/good"]


def test_train_only_and_test_only(tmp_path: Path) -> None:
    touch(tmp_path / "a/train/good/0.png", tmp_path / "b/test/good/0.png")
    assert len(mvtec_records(tmp_path / "a")) == 1
    assert len(mvtec_records(tmp_path / "b", split="test")) == 1
    with pytest.raises(DataError, match=r"a/test: expected test/good/ and test/<defect>/"):
        mvtec_records(tmp_path / "a", split="test")
    with pytest.raises(DataError, match=r"b/train/good: expected.*found test/"):
        mvtec_records(tmp_path)
    with pytest.raises(DataError, match=r"b/train/good: expected.*found test/"):
        mvtec_records(tmp_path, split="train")


def test_without_ground_truth(tmp_path: Path) -> None:
    touch(tmp_path / "train/good/0.png", tmp_path / "test/bad/0.png", tmp_path / "test/bad/1.png")
    records = mvtec_records(tmp_path, split="test")
    assert [(record.defect, record.mask) for record in records] == [(True, None)] * 2


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    nut = make_class(tmp_path / "nut")
    (nut / "ground_truth/cut/001.PNG").unlink()
    with pytest.raises(DataError) as caught:
        mvtec_records(nut)
    assert str(nut / "test/cut/001.bmp") in str(caught.value)
    assert str(nut / "ground_truth/cut/001_mask.png") in str(caught.value)
    assert len(mvtec_records(nut, split="train")) == 2
    touch(nut / "ground_truth/cut/001.PNG")
    (nut / "ground_truth/stain/000_mask.tif").unlink()
    (nut / "ground_truth/stain").rmdir()
    with pytest.raises(DataError, match=r"000\.WebP: has no mask"):
        mvtec_records(nut)


def test_unknown_class(tmp_path: Path) -> None:
    for name in ("hazelnut", "wood"):
        make_class(tmp_path / name)
    with pytest.raises(DataError, match=r"no class 'hazlenut' \(did you mean 'hazelnut'\?\)"):
        mvtec_records(tmp_path, classes=["hazlenut"])
    with pytest.raises(DataError, match=r"no class 'zipper'; found hazelnut, wood"):
        mvtec_records(tmp_path, classes=["zipper"])
    with pytest.raises(DataError, match="expected a list"):
        mvtec_records(tmp_path, classes=[])
    with pytest.raises(DataError, match="expected a list"):
        mvtec_records(tmp_path, classes="wood")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "found an empty folder"),
        (["0.png", "1.png"], r"found 2 image\(s\) directly in it"),
        (["good/0.png"], "found good/ directly in it"),
        (["a/0.png", "b/0.png"], r"found a/, b/; no folder has train/ or test/"),
        ([f"{i}/x" for i in range(9)], r"0/, 1/, 2/, 3/, 4/ and 4 more"),
        (["train/0.png"], r"train/good: expected .*, found 0\.png"),
        (["train/a/0.png", "train/b/0.png"], r"train/good: expected .*, found a/, b/"),
        (["nut/train/ok/0.png"], r"nut/train/good: expected .*class 'nut', found ok/"),
        (["train/good/x.txt"], r"train/good: expected images .*found x\.txt"),
        (["train/good/sub/0.png"], r"train/good: expected images .*found sub/"),
        (["train/good/.0.png"], r"train/good: expected images .*found an empty folder"),
        (["train/good/0.png", "test/0.png"], r"test: expected folders .*found 0\.png"),
        (["train/good/0.png", "test/.x"], r"test: expected folders .*found an empty folder"),
        (["train/good/0.png", "test/cut/0.npy"], r"test/cut: expected images .*found 0\.npy"),
    ],
)
def test_wrong_roots(tmp_path: Path, files: list[str], message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    touch(*(root / file for file in files))
    with pytest.raises(DataError, match=message) as caught:
        mvtec_records(root)
    assert str(caught.value).startswith(str(root))


def test_root_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing of that name"):
        mvtec_records(tmp_path / "nowhere")
    touch(tmp_path / "x.zip")
    with pytest.raises(DataError, match="found a file"):
        mvtec_records(tmp_path / "x.zip")


@settings(max_examples=25, deadline=None)
@given(st.sets(st.text("abcXYZ 0189._-é", min_size=1, max_size=8), min_size=1, max_size=6))
def test_every_visible_image_is_listed_once(
    tmp_path_factory: pytest.TempPathFactory, stems: set[str]
) -> None:
    root = tmp_path_factory.mktemp("set")
    names = {f"{stem}.png" for stem in stems}
    touch(root / "train/good/always.png", *(root / "train/good" / name for name in names))
    expected = sorted(name for name in {*names, "always.png"} if not name.startswith("."))
    assert [record.path.name for record in mvtec_records(root)] == expected
