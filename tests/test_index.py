"""The MVTec layout: every well-formed folder is listed, every other one gets a helpful error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaadv2.data.index import Record, Split, list_records, mvtec_records
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
    with pytest.raises(DataError, match=r'expected "train", "validation", "test" or None'):
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


def problems(root: Path, split: Split | None = None) -> list[tuple[str, str]]:
    """(path inside the root, message) of every problem."""
    listing = list_records(root, split=split)
    return [(str(p.path.relative_to(root)), p.message) for p in listing.problems]


def test_a_sound_folder_gives_the_same_records_and_no_problem(tmp_path: Path) -> None:
    for name in ("nut", "wood"):
        make_class(tmp_path / name)
    touch(tmp_path / "nut/train/good/Thumbs.db", tmp_path / "nut/train/good/.DS_Store")
    splits: tuple[Split | None, ...] = (None, "train", "test")
    for split in splits:
        listing = list_records(tmp_path, split=split)
        assert listing.records == mvtec_records(tmp_path, split=split)
        assert listing.problems == ()
        assert listing.classes == {"nut": tmp_path / "nut", "wood": tmp_path / "wood"}


def test_every_problem_is_listed_and_the_rest_as_well(tmp_path: Path) -> None:
    nut = make_class(tmp_path / "nut")
    (nut / "ground_truth/cut/001.PNG").unlink()
    touch(
        nut / "train/good/a.HEIC",
        nut / "ground_truth/cut/000.png",
        nut / "ground_truth/cut/777_mask.png",
        nut / "ground_truth/dent/000_mask.png",
        nut / "ground_truth/loose.png",
        tmp_path / "pin/good/0.png",
        tmp_path / "tin/test/good/0.png",
    )
    for folder in ("bolt", "rod/train/good", "nut/test/scratch"):
        (tmp_path / folder).mkdir(parents=True)
    expected = [
        ("bolt", "found an empty folder"),
        ("pin", "found good/ directly in it; move it to"),
        ("nut/train/good/a.HEIC", "found .HEIC, which cannot be read; convert"),
        ("nut/test/cut/000.png", "has 2 masks"),
        ("nut/test/cut/001.bmp", "has no mask; expected"),
        ("nut/ground_truth/cut/777_mask.png", "is a mask without its image; expected 777.*"),
        ("nut/test/scratch", "found an empty folder"),
        ("nut/ground_truth/dent/000_mask.png", "is a mask without its image"),
        ("nut/ground_truth/loose.png", "expected masks in"),
        ("rod/train/good", "found an empty folder"),
        ("tin/train/good", "expected a folder of normal images for class 'tin', found test/"),
    ]
    found = problems(tmp_path)
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, message), (_, words) in zip(found, expected, strict=True):
        assert message.startswith(f"{tmp_path / path}: ")
        assert words in message
    kept = {record.path.name for record in list_records(tmp_path).records}
    assert kept == {"000.JPG", "001.png", "000.tiff", "000.WebP", "0.png"}
    # Training does not look at what is wrong in test, nor the other way round.
    assert {path for path, _ in problems(tmp_path, "train")} == {
        *("bolt", "pin", "nut/train/good/a.HEIC", "rod/train/good", "tin/train/good")
    }
    with pytest.raises(DataError, match="bolt: expected a class folder"):
        mvtec_records(tmp_path)


def test_what_is_chosen_hides_the_problems_of_the_rest(tmp_path: Path) -> None:
    make_class(tmp_path / "nut")
    (tmp_path / "bolt").mkdir()
    (tmp_path / "rod/train/good").mkdir(parents=True)
    assert list_records(tmp_path, classes=["nut"]).problems == ()


def test_a_mask_of_an_image_whose_name_ends_with_mask(tmp_path: Path) -> None:
    touch(
        *(tmp_path / "test/cut" / name for name in ("a.png", "a_mask.png", "b_mask.png")),
        *(tmp_path / "ground_truth/cut" / name for name in ("a_mask.png", "a_mask_mask.png")),
        tmp_path / "ground_truth/cut/b_mask.png",
    )
    listing = list_records(tmp_path, split="test")
    assert listing.problems == ()
    pairs = {r.path.name: r.mask.name for r in listing.records if r.mask}
    assert pairs == {"a.png": "a_mask.png", "a_mask.png": "a_mask_mask.png"} | {
        "b_mask.png": "b_mask.png"
    }


def test_a_folder_that_cannot_be_listed_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nut = make_class(tmp_path / "nut")
    scandir = os.scandir
    closed: set[Path] = set()

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path) in closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed |= {nut / "train/good", nut / "test/cut"}
    assert [path for path, _ in problems(tmp_path)] == ["nut/train/good", "nut/test/cut"]
    assert "cannot be listed (Permission denied)" in problems(tmp_path)[0][1]
    assert len(list_records(tmp_path).records) == 2
    # Where masks cannot be seen, their images are not said to have none.
    for folder in ("ground_truth/stain", "ground_truth"):
        closed.clear()
        closed.add(nut / folder)
        assert [path for path, _ in problems(tmp_path)] == [f"nut/{folder}"]
        kinds = [r.defect_type for r in list_records(tmp_path, split="test").records]
        assert kinds == (["cut", "cut", "good"] if folder != "ground_truth" else ["good"])
    closed.add(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        list_records(tmp_path)


def test_folders_that_are_not_looked_into_are_told(tmp_path: Path) -> None:
    make_class(tmp_path / "nut")
    touch(tmp_path / "nut/train/good/more/0.png", tmp_path / "sheets/0.png", tmp_path / "doc/a.pdf")
    listing = list_records(tmp_path)
    assert listing.problems == ()
    assert listing.ignored == (tmp_path / "sheets", tmp_path / "nut/train/good/more")


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
