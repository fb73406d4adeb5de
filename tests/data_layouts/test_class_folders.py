"""MVTec's four data sets, BTAD and plain folders: which file becomes what, and what is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.data_layouts.trees import (
    IMAGE,
    TREES,
    btad,
    draw,
    messages,
    mvtec,
    mvtec_3d,
    mvtec_ad2,
    mvtec_loco,
    plain,
)

from mambaadv2.data.check import check_data
from mambaadv2.data.index import list_records
from mambaadv2.data.layouts.mvtec import PUBLISHED
from mambaadv2.data.record import Listing
from mambaadv2.data.verify import read_masks, read_record, usable_records
from mambaadv2.errors import BadFilesError, DataError, ImageError, Problem
from mambaadv2.image import write_png


def short(listing: Listing, root: Path) -> list[tuple[str, str, str, list[str]]]:
    """(split, label, image, masks) of every record, files below the root."""
    return [
        (
            record.split,
            record.defect_type,
            str(record.path.relative_to(root)),
            [str(mask.relative_to(root)) for mask in record.masks],
        )
        for record in listing.records
    ]


def test_mvtec_ad_2(tmp_path: Path) -> None:
    mvtec_ad2(tmp_path)
    found = list_records(tmp_path)
    assert short(found, tmp_path / "can") == [
        ("train", "good", "train/good/0_regular.png", []),
        ("validation", "good", "validation/good/1_regular.png", []),
        (
            *("test", "bad", "test_public/bad/3_regular.png"),
            ["test_public/ground_truth/bad/3_regular_mask.png"],
        ),
        ("test", "good", "test_public/good/2_regular.png", []),
    ]
    # Without labels they are neither good nor defect.
    private = tmp_path / "can/test_private"
    assert found.ignored == (private, tmp_path / "can/test_private_mixed")
    (note,) = check_data(tmp_path, progress=False).findings[-1:]
    assert (note.kind, note.files) == ("ignored", found.ignored)


def test_mvtec_ad_2_names_a_missing_mask_and_a_stray_one(tmp_path: Path) -> None:
    mvtec_ad2(tmp_path)
    public = tmp_path / "can/test_public"
    (public / "bad/3_regular.png").rename(public / "bad/9_regular.png")
    assert messages(list_records(tmp_path, split="test")) == [
        f"{public}/bad/9_regular.png: has no mask; expected "
        f"{public}/ground_truth/bad/9_regular_mask.png or 9_regular.png there. Without any masks, "
        "remove the class's ground_truth/",
        f"{public}/ground_truth/bad/3_regular_mask.png: is a mask without its image; expected "
        f"3_regular.* in {public}/bad; add the image or remove the mask",
    ]


def test_mvtec_loco(tmp_path: Path) -> None:
    mvtec_loco(tmp_path)
    truth = "ground_truth/logical_anomalies/0"
    assert short(list_records(tmp_path), tmp_path / "pushpins") == [
        ("train", "good", "train/good/0.png", []),
        ("validation", "good", "validation/good/0.png", []),
        ("test", "good", "test/good/0.png", []),
        (
            *("test", "logical_anomalies", "test/logical_anomalies/0.png"),
            [f"{truth}/000.png", f"{truth}/001.png", f"{truth}/002.png"],
        ),
        (
            *("test", "structural_anomalies", "test/structural_anomalies/0.png"),
            ["ground_truth/structural_anomalies/0/000.png"],
        ),
    ]


def test_several_masks_are_their_union(tmp_path: Path) -> None:
    mvtec_loco(tmp_path)
    (record,) = (r for r in list_records(tmp_path).records if len(r.masks) == 3)
    expected = np.zeros((3, 4), np.bool_)
    expected[1, 2] = expected[0, 0] = True
    answer = read_record(record)
    assert not isinstance(answer, Problem)
    for mask in (answer[1], read_masks(record)):
        np.testing.assert_array_equal(mask, expected)
    with pytest.raises(ValueError, match=r"has 3 masks, whose union counts; read `masks`"):
        _ = record.mask
    single = next(r for r in list_records(tmp_path).records if len(r.masks) == 1)
    assert single.mask == single.masks[0]


def test_every_one_of_several_masks_must_fit(tmp_path: Path) -> None:
    mvtec_loco(tmp_path)
    last = tmp_path / "pushpins/ground_truth/logical_anomalies/0/002.png"
    write_png(last, np.zeros((2, 4), np.uint8))
    with pytest.raises(BadFilesError) as caught:
        usable_records(tmp_path, split="test", progress=False)
    assert f"{last}: expected the size of its image" in str(caught.value)
    (record,) = (r for r in list_records(tmp_path).records if len(r.masks) == 3)
    with pytest.raises(ImageError, match=r"002.png: expected the size of the image's other masks"):
        read_masks(record)
    last.write_bytes(b"")
    found = usable_records(tmp_path, split="test", on_error="skip", progress=False)
    assert [problem.path for problem in found.skipped] == [last]
    assert record.path not in {kept.path for kept in found.records}


def test_mvtec_loco_names_what_is_left_over(tmp_path: Path) -> None:
    mvtec_loco(tmp_path)
    truth = tmp_path / "pushpins/ground_truth/logical_anomalies"
    draw(truth, "7/000.png", "loose.png")
    (truth / "8").mkdir()
    draw(tmp_path / "pushpins", "test/logical_anomalies/8.png", "test/logical_anomalies/9.png")
    beside = tmp_path / "pushpins/test/logical_anomalies"
    found = messages(list_records(tmp_path))
    assert len(found) == 4
    assert found[0].startswith(f"{truth}/8: expected images (")
    assert found[1:] == [
        f"{beside}/9.png: has no masks; expected the folder {truth}/9/ with 000.png and so on",
        f"{truth}/7: holds masks without their image; expected 7.* in {beside}; add the image or "
        "remove the folder",
        f"{truth}/loose.png: expected masks in {truth}/<image>/; move it there or remove it",
    ]


def test_mvtec_3d(tmp_path: Path) -> None:
    mvtec_3d(tmp_path)
    assert short(list_records(tmp_path), tmp_path / "bagel") == [
        ("train", "good", "train/good/rgb/000.png", []),
        ("validation", "good", "validation/good/rgb/000.png", []),
        ("test", "good", "test/good/rgb/000.png", []),
        ("test", "hole", "test/hole/rgb/000.png", ["test/hole/gt/000.png"]),
    ]
    (tmp_path / "bagel/test/hole/gt/000.png").unlink()
    (problem,) = list_records(tmp_path, split="test").problems
    assert problem.message.startswith(f"{tmp_path}/bagel/test/hole/rgb/000.png: has no mask")


def test_btad(tmp_path: Path) -> None:
    btad(tmp_path)
    assert short(list_records(tmp_path), tmp_path) == [
        ("train", "good", "01/train/ok/0000.bmp", []),
        ("test", "good", "01/test/ok/0001.bmp", []),
        ("test", "ko", "01/test/ko/0000.bmp", ["01/ground_truth/ko/0000.png"]),
        ("train", "good", "03/train/ok/0000.bmp", []),
        ("test", "good", "03/test/ok/0001.bmp", []),
        ("test", "ko", "03/test/ko/0002.bmp", ["03/ground_truth/ko/0002.bmp"]),
    ]
    with pytest.raises(DataError, match=r"expected class folders \(.*/<class>/train/good/\*\.png"):
        list_records(tmp_path / "01/train", layout="mvtec")
    wrong = list_records(tmp_path, layout="mvtec")
    assert "01/train/good: expected a folder of normal images" in messages(wrong)[0]


@pytest.mark.parametrize("layout", sorted(PUBLISHED))
def test_a_published_data_set_is_known_by_its_classes(layout: str, tmp_path: Path) -> None:
    TREES[layout](tmp_path)
    found = list_records(tmp_path)
    assert found.layout == layout
    assert f"which are the {len(PUBLISHED[layout])} classes of it" in found.reason
    assert set(found.classes) == PUBLISHED[layout]
    (tmp_path / sorted(found.classes)[0]).rename(tmp_path / "other")
    assert list_records(tmp_path).layout == "mvtec"
    with pytest.raises(DataError, match=f"class folders of {layout} .*, found other; name"):
        list_records(tmp_path, layout=layout)


def test_training_never_looks_into_test_or_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir
    listed: list[str] = []

    def spy(path: Path) -> Iterator[os.DirEntry[str]]:
        listed.append(str(path))
        return scandir(path)

    for layout in ("mvtec", "mvtec-ad2", "mvtec-loco", "mvtec-3d", "btad"):
        TREES[layout](tmp_path / layout)
        (one, *_) = (tmp_path / layout).iterdir()
        for root in (tmp_path / layout, one):
            listed.clear()
            with monkeypatch.context() as patch:
                patch.setattr("os.scandir", spy)
                list_records(root, split="train")
            assert listed
            inside = [name.removeprefix(f"{tmp_path}/{layout}") for name in listed]
            assert not [name for name in inside if "test" in name or "validation" in name]


def test_plain_folders(tmp_path: Path) -> None:
    root = tmp_path / "valve"
    plain(root)
    found = list_records(root)
    assert set(found.classes) == {"valve"}
    assert found.reason == "good/ directly in it"
    assert short(found, root) == [
        ("train", "good", "good/a.png", []),
        ("train", "good", "good/b.png", []),
        ("test", "bent", "bent/d.png", ["ground_truth/bent/d.png"]),
        ("test", "cut", "cut/e.png", ["ground_truth/cut/e_mask.png"]),
        ("test", "good", "good_test/c.png", []),
    ]
    plain(tmp_path / "pump")
    both = list_records(tmp_path)
    assert set(both.classes) == {"pump", "valve"}
    assert both.reason == "good/ directly in pump, valve"


def test_plain_folders_may_be_good_images_alone(tmp_path: Path) -> None:
    draw(tmp_path, "good/a.png")
    assert [record.split for record in list_records(tmp_path).records] == ["train"]
    (problem,) = list_records(tmp_path, split="test").problems
    assert problem.message.startswith(f"{tmp_path}: expected images to test on: good_test/ and")
    draw(tmp_path, "bent/d.png", "ground_truth/rust/x.png")
    found = list_records(tmp_path, split="test")
    assert found.records == ()
    assert "bent/d.png: has no mask" in messages(found)[0]
    assert "rust/x.png: is a mask without its image" in messages(found)[1]
    assert len(found.problems) == 2


def test_layouts_that_have_no_validation_say_so(tmp_path: Path) -> None:
    mvtec(tmp_path / "a")
    (problem,) = list_records(tmp_path / "a", split="validation").problems
    assert "expected images for validation, but this layout has none" in problem.message
    mvtec_3d(tmp_path / "b")
    (tmp_path / "b/bagel/validation").rename(tmp_path / "b/bagel/val")
    (problem,) = list_records(tmp_path / "b", split="validation").problems
    assert problem.message.startswith(f"{tmp_path}/b/bagel/validation/good: expected a folder of")
    assert list_records(tmp_path / "b").problems == ()


def test_what_a_folder_should_not_hold_is_named(tmp_path: Path) -> None:
    mvtec_3d(tmp_path)
    (tmp_path / "bagel/train/good/rgb/001.heic").touch()
    (tmp_path / "bagel/test/crack/rgb").mkdir(parents=True)
    found = messages(list_records(tmp_path))
    assert "001.heic: expected a PNG, JPEG, BMP, TIFF or WebP image, found .heic" in found[0]
    assert "test/crack/rgb: expected images" in found[1]
    write_png(tmp_path / "bagel/test/loose.png", IMAGE)
    assert "bagel/test: expected folders (good/ and one per defect type)" in "".join(
        messages(list_records(tmp_path))
    )
