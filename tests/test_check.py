"""`check`: silent on a sound data set, and each fault that is put in is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import mannwhitneyu

from mambaadv2.data.check import DataReport, check_data
from mambaadv2.data.duplicates import cells, near_groups, small_grey
from mambaadv2.data.findings import Finding, rank_test
from mambaadv2.data.manifest import write_manifest
from mambaadv2.data.record import make_record
from mambaadv2.data.sheet import MOST, TILE, write_sheets
from mambaadv2.data.synthetic import generate
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.image import read_image, write_png

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "parts"
    generate(root, size=96, train=16, good=10, defect=3)
    return root


@pytest.fixture
def parts(generated: Path, tmp_path: Path) -> Path:
    """Return a copy to put faults in."""
    return Path(shutil.copytree(generated, tmp_path / "parts"))


def found(report: DataReport) -> set[tuple[str, str, str | None]]:
    return {(each.severity, each.kind, each.class_name) for each in report.findings}


def finding(report: DataReport, kind: str) -> Finding:
    (only,) = (each for each in report.findings if each.kind == kind)
    return only


def names(report: DataReport, kind: str, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in finding(report, kind).files]


def test_a_sound_data_set_gives_a_table_and_no_finding(generated: Path) -> None:
    report = check_data(generated)
    assert report.findings == ()
    assert report.clean
    part = report.parts[0]
    assert (part.class_name, part.split, part.label) == ("capsule", "train", "good")
    assert (part.images, part.unusable, part.masks) == (16, 0, 0)
    assert (part.sizes, part.formats) == ({"96 x 96": 16}, {"PNG": 16})
    assert (part.bits, part.channels) == ({"8": 16}, {"3": 16})
    paths = sorted((generated / "capsule/train/good").iterdir())
    means = [read_image(path).mean() for path in paths]
    assert part.brightness == pytest.approx((np.mean(means), min(means), max(means)), abs=0.01)
    assert len(report.parts) == 4 * (2 + 3)
    text = report.text()
    lines = text.splitlines()
    assert lines[0].startswith("layout: mvtec (train/good/ or test/good/ in capsule, fabric")
    assert lines[3].split()[:6] == ["capsule", "train", "good", "16", "-", "-"]
    assert text.endswith("Nothing to complain about.")
    assert json.loads(report.to_json())["findings"] == []


def test_one_class_can_be_chosen_and_a_wrong_root_is_an_error(generated: Path) -> None:
    report = check_data(generated, classes=["gear"])
    assert {part.class_name for part in report.parts} == {"gear"}
    with pytest.raises(DataError, match="nothing of that name"):
        check_data(generated / "none")


def jpeg(path: Path, out: Path) -> None:
    Image.open(path).save(out.with_suffix(".jpg"), quality=90)


def resized(path: Path, out: Path) -> None:
    Image.open(path).resize((92, 92), Image.Resampling.BICUBIC).save(out)


def brighter(path: Path, out: Path) -> None:
    write_png(out, np.clip(np.rint(read_image(path) * 1.02), 0, 255).astype(np.uint8))


def all_at_once(path: Path, out: Path) -> None:
    brighter(path, out)
    resized(out, out)
    jpeg(out, out)
    out.unlink()


@pytest.mark.parametrize("copy", [jpeg, resized, brighter, all_at_once])
@pytest.mark.parametrize("name", ["capsule", "fabric", "gear", "wood"])
def test_a_changed_copy_from_train_in_test_is_a_leak(
    parts: Path, name: str, copy: Callable[[Path, Path], None]
) -> None:
    source, out = parts / name / "train/good/003.png", parts / name / "test/good/copy.png"
    copy(source, out)
    report = check_data(parts, classes=[name])
    kinds = {kind for severity, kind, _ in found(report) if severity != "note"}
    assert kinds == {"near_leak"}
    leak = finding(report, "near_leak")
    assert leak.files[0] == source
    assert leak.files[1].stem == "copy"
    assert len(leak.files) == 2
    assert f"{name}/train/good/003.png ~ {name}/test/good/copy" in leak.lines[0]


def test_a_class_of_copies_only_is_seen_through(generated: Path) -> None:
    paths = sorted((generated / "gear/train/good").iterdir())
    images = [read_image(path) for path in paths]
    changed = [np.clip(np.rint(image * 1.02), 0, 255).astype(np.uint8) for image in images]
    vectors = np.array([cells(small_grey(image)) for image in (*images, *changed)])
    count = len(images)
    assert near_groups(vectors, count) == [[i, i + count] for i in range(count)]
    assert near_groups(vectors[: len(images)]) == []


def test_grouping_needs_enough_images_and_ignores_blank_ones() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(100, 30, (40, 1024)).astype(np.float32)
    vectors[5] = vectors[2] * 1.1 + 3
    vectors[[7, 8]] = 50
    assert near_groups(vectors) == [[2, 5]]
    assert near_groups(vectors, 4) == [[2, 5]]
    assert near_groups(vectors[:6][[0, 1, 2, 5]]) == []
    assert near_groups(vectors[:0]) == []


def test_equal_pictures_by_what_they_spoil(parts: Path) -> None:
    good = parts / "gear/train/good"
    shutil.copy(good / "000.png", parts / "gear/test/good/a.png")
    Image.open(good / "001.png").save(good / "b.webp", lossless=True)
    Image.open(parts / "gear/test/rust/000.png").save(parts / "gear/test/good/c.png", optimize=True)
    shutil.copy(parts / "gear/test/good/001.png", parts / "gear/test/good/d.png")
    shutil.copy(parts / "wood/train/good/001.png", parts / "gear/train/good/e.png")
    report = check_data(parts)
    assert {entry for entry in found(report) if "mixed" not in entry[1]} == {
        ("warning", "leak", "gear"),
        ("warning", "copies_in_train", "gear"),
        ("warning", "copies_across_labels", "gear"),
        ("note", "copies_in_test", "gear"),
        ("warning", "copies_across_classes", None),
    }
    assert finding(report, "leak").lines == ("gear/train/good/000.png = gear/test/good/a.png",)
    assert finding(report, "copies_in_train").lines == (
        "gear/train/good/001.png = gear/train/good/b.webp (different files, the same pixels)",
    )
    assert names(report, "copies_across_classes", parts) == [
        *("gear/train/good/e.png", "wood/train/good/001.png")
    ]
    assert not report.clean


def test_what_cannot_be_used_is_an_error_for_each_class(parts: Path) -> None:
    good = parts / "gear/train/good"
    for number in range(7):
        (good / f"{number:03d}.png").write_bytes(b"")
    (parts / "wood/ground_truth/hole/777_mask.png").touch()
    (parts / "empty").mkdir()
    report = check_data(parts)
    assert {entry for entry in found(report) if entry[0] == "error"} == {
        *(("error", "unusable", name) for name in ("gear", "wood", None))
    }
    assert ("warning", "few_train", "gear") in found(report)
    (unusable,) = (f for f in report.findings if f.severity == "error" and f.class_name == "gear")
    assert unusable.files == tuple(good / f"{number:03d}.png" for number in range(7))
    assert all(str(path) in line for path, line in zip(unusable.files, unusable.lines, strict=True))
    text = report.text()
    assert "gear: 7 items that cannot be used: training or evaluation would stop" in text
    assert "    and 2 more; --json has all" in text
    assert text.count("004.png") == 1
    assert text.count("005.png") == 0
    content = json.loads(report.to_json())
    assert content["error"] == 3
    assert any(str(good / "006.png") in entry["files"] for entry in content["findings"])
    part = next(p for p in report.parts if p.class_name == "gear")
    assert (part.images, part.unusable) == (16, 7)


def test_masks_that_mark_nothing_all_or_traces(parts: Path) -> None:
    truth = parts / "wood/ground_truth/hole"
    write_png(truth / "000_mask.png", np.zeros((96, 96), np.uint8))
    write_png(truth / "001_mask.png", np.full((96, 96), 255, np.uint8))
    Image.open(truth / "002_mask.png").save(truth / "002_mask.jpg")
    (truth / "002_mask.png").unlink()
    write_png(parts / "gear/ground_truth/rust/000_mask.png", np.zeros((9, 96), np.uint8))
    shutil.rmtree(parts / "capsule/ground_truth")
    report = check_data(parts)
    assert {each for each in found(report) if each[1] != "unusable"} == {
        *(("warning", f"{kind}_mask", "wood") for kind in ("empty", "full", "lossy")),
        ("note", "no_masks", "capsule"),
    }
    (line,) = finding(report, "unusable").lines
    assert "96 x 96, found 96 x 9" in line


def test_blank_and_dark_images(parts: Path) -> None:
    good = parts / "wood/train/good"
    for name in ("x.png", "y.png"):
        write_png(good / name, np.full((96, 96, 3), 7, np.uint8))
    # A camera that fills 12 of 16 bits.
    noise = np.random.default_rng(0).integers(0, 4095, (96, 96)).astype(np.uint16)
    Image.fromarray(noise).save(good / "z.png")
    report = check_data(parts, classes=["wood"])
    assert names(report, "constant", good) == ["x.png", "y.png"]
    assert names(report, "dark", good) == ["z.png"]
    assert ("warning", "copies_in_train", "wood") not in found(report)
    assert names(report, "mixed_bits", good) == ["z.png"]


def test_brightness_that_tells_the_groups_apart(parts: Path) -> None:
    for path in (parts / "wood/test/good").iterdir():
        write_png(path, (read_image(path) * 0.7).astype(np.uint8))
    report = check_data(parts)
    assert found(report) == {
        ("warning", "brightness_train", "wood"),
        ("warning", "brightness_labels", "wood"),
    }
    assert (
        "mean brightness alone (lower, AUROC 1.000" in finding(report, "brightness_train").message
    )
    assert "16 against 10 images" in finding(report, "brightness_train").message
    assert "(higher, AUROC 1.000" in finding(report, "brightness_labels").message


def test_few_images_prove_nothing_about_brightness(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, count, level in (("train/good", 12, 100), ("test/good", 3, 40), ("test/cut", 3, 160)):
        (tmp_path / kind).mkdir(parents=True)
        for number in range(count):
            write_png(
                tmp_path / kind / f"{number}.png",
                rng.integers(level, level + 40, (32, 32, 3)).astype(np.uint8),
            )
    kinds = {kind for _, kind, _ in found(check_data(tmp_path))}
    assert kinds == {"no_masks"}


def test_mixtures_are_noted_and_told_when_they_give_the_answer_away(parts: Path) -> None:
    good, defects = parts / "gear/train/good", parts / "gear/test"
    resized(good / "000.png", good / "000.png")
    Image.open(good / "001.png").resize((96, 90)).save(good / "001.png")
    Image.open(good / "002.png").convert("L").save(good / "002.png")
    for kind in ("missing_tooth", "rust", "scratch"):
        for path in list((defects / kind).iterdir()):
            jpeg(path, path)
            path.unlink()
    report = check_data(parts, classes=["gear"])
    assert found(report) == {
        *(("note", f"mixed_{kind}", "gear") for kind in ("size", "channels", "aspect")),
        ("warning", "mixed_format", "gear"),
    }
    assert "tell good from defect test images" in finding(report, "mixed_format").message
    assert names(report, "mixed_size", good) == ["000.png", "001.png"]
    assert "96 x 96 (33), " in finding(report, "mixed_size").message


def test_missing_groups_and_large_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def fill(folder: str, count: int, side: int = 32) -> None:
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 255, (side, 2 * side, 3)).astype(np.uint8)
            write_png(tmp_path / folder / f"{number}.png", image)

    fill("a/train/good", 10, 600)
    fill("b/train/good", 9)
    fill("b/test/good", 2)
    fill("c/train/good", 10)
    fill("c/test/cut", 2)
    fill("d/test/good", 1)
    fill("d/test/cut", 1)
    report = check_data(tmp_path)
    assert {each for each in found(report) if each[1] != "no_masks"} == {
        ("note", "large", "a"),
        ("note", "no_test", "a"),
        ("warning", "few_train", "b"),
        ("warning", "no_test_defect", "b"),
        ("warning", "no_test_good", "c"),
        ("error", "unusable", "d"),
        ("error", "no_train", "d"),
    }
    assert "1200 x 600" in finding(report, "large").message
    assert "only 9 good training images" in finding(report, "few_train").message


def test_a_manifest_with_odd_names_is_shown_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = []
    for number in range(10):
        path = tmp_path / f"a\n{number}.png"
        write_png(path, rng.integers(0, 255, (16, 16, 3)).astype(np.uint8))
        records.append(make_record(path, "../nut", "train", "good"))
    write_manifest(records, tmp_path / "parts.csv")
    (tmp_path / "a\n3.png").write_bytes(b"")
    report = check_data(tmp_path / "parts.csv")
    assert ("error", "unusable", "../nut") in found(report)
    assert "a\\n3.png" in report.text()
    assert len(json.loads(report.to_json())["parts"]) == 1
    (sheet,) = write_sheets(report, tmp_path / "sheets")
    assert sheet == tmp_path / "sheets/..-nut_train_good.png"


values = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30)


@given(values, values)
def test_the_rank_test_is_that_of_scipy(a: list[float], b: list[float]) -> None:
    area, p = rank_test(a, b)
    if len(set(a + b)) == 1:
        assert (area, p) == (0.5, 1.0)
        return
    expected = mannwhitneyu(b, a, method="asymptotic")
    assert area == pytest.approx(expected.statistic / (len(a) * len(b)))
    assert p == pytest.approx(expected.pvalue, rel=1e-6)


RED, GREEN = (205, 30, 30), (0, 255, 160)


def has_colour(image: Pixels, colour: tuple[int, int, int]) -> bool:
    return bool((image == np.array(colour, np.uint8)).all(axis=2).any())


def test_a_sheet_for_every_class_and_label(parts: Path, tmp_path: Path) -> None:
    (parts / "gear/train/good/000.png").write_bytes(b"")
    shutil.copy(parts / "wood/train/good/001.png", parts / "wood/test/good/900.png")
    report = check_data(parts)
    sheets = write_sheets(report, tmp_path / "deep/sheets", progress=False)
    assert len(sheets) == len(report.parts)
    assert sheets[0].name == "capsule_train_good.png"
    images = {path.stem: read_image(path) for path in sheets}
    marked = {stem for stem, image in images.items() if has_colour(image, RED)}
    assert marked == {"gear_train_good", "wood_train_good", "wood_test_good"}
    outlined = {stem for stem, image in images.items() if has_colour(image, GREEN)}
    assert outlined == {stem for stem in images if not stem.endswith("_good")}
    # 16 images in rows of ten.
    assert 2 * TILE < images["capsule_train_good"].shape[0] < 3 * TILE
    assert 10 * TILE < images["capsule_train_good"].shape[1] < 11 * TILE


def test_a_sheet_shows_at_most_so_many_and_the_marked_ones_first(tmp_path: Path) -> None:
    folder = tmp_path / "nut/train/good"
    folder.mkdir(parents=True)
    for number in range(MOST + 30):
        image = np.random.default_rng(number).integers(0, 255, (4, 4, 3)).astype(np.uint8)
        write_png(folder / f"{number:03d}.png", image)
    (folder / f"{MOST + 11}.png").write_bytes(b"")
    (sheet,) = write_sheets(check_data(tmp_path), tmp_path / "sheets", progress=False)
    pixels = read_image(sheet)
    assert has_colour(pixels[: 2 * TILE, : 2 * TILE], RED)
    rows = MOST // 10
    assert rows * TILE < pixels.shape[0] < (rows + 8) * TILE


def test_sheets_need_a_folder_that_can_be_written_to(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = check_data(generated, classes=["wood"])
    with pytest.raises(ConfigError, match="out: cannot write to"):
        write_sheets(report, tmp_path / "file")
