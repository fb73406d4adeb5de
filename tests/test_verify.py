"""Every file is opened before any work: what cannot be used is named, all of it, and left out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mambaadv2.data.manifest import write_manifest
from mambaadv2.data.record import Split
from mambaadv2.data.verify import in_threads, usable_records
from mambaadv2.errors import BadFilesError, DataError
from mambaadv2.image import write_png


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.full((*size, 3), 90, np.uint8))
    return path


def mask(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.full(size, 255, np.uint8))
    return path


def make_class(folder: Path) -> Path:
    for number in range(3):
        picture(folder / f"train/good/{number}.png")
        picture(folder / f"test/good/{number}.png")
        picture(folder / f"test/cut/{number}.png")
        mask(folder / f"ground_truth/cut/{number}_mask.png")
    return folder


def truncate(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def test_a_sound_data_set_is_returned_whole(tmp_path: Path) -> None:
    make_class(tmp_path / "nut")
    for split, count in (("train", 3), ("test", 6)):
        found = usable_records(tmp_path, split=split)  # type: ignore[arg-type]
        assert len(found.records) == count
        assert {record.split for record in found.records} == {split}
        assert found.skipped == ()


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Return the bad files of a class, by what is wrong, that also has something sound."""
    nut = make_class(tmp_path / "nut")
    files = {
        "truncated": truncate(picture(nut / "train/good/a.png", (60, 50))),
        "empty": nut / "train/good/b.png",
        "no image": nut / "train/good/c.jpg",
        "vanished": nut / "train/good/d.png",
        "foreign": nut / "train/good/e.heic",
        "wrong size": mask(nut / "ground_truth/cut/1_mask.png", (8, 9)),
        "bad mask": truncate(mask(nut / "ground_truth/cut/2_mask.png")),
        "stray mask": mask(nut / "ground_truth/cut/7_mask.png"),
    }
    files["empty"].touch()
    files["no image"].write_text("<html>")
    files["vanished"].symlink_to("nowhere.png")
    files["foreign"].touch()
    return files


def test_stop_names_everything_at_once(bad: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadFilesError) as caught:
        usable_records(tmp_path, split="train", on_error="stop")
    expected = [bad[key] for key in ("truncated", "empty", "no image", "vanished", "foreign")]
    assert [problem.path for problem in caught.value.problems] == expected
    for path in expected:
        assert f"\n  {path}: " in str(caught.value)
    with pytest.raises(BadFilesError, match="3 problems") as caught:
        usable_records(tmp_path, split="test")
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert set(found) == {bad[key] for key in ("wrong size", "bad mask", "stray mask")}
    image = tmp_path / "nut/test/cut/1.png"
    assert f"expected the size of its image {image}, 8 x 8, found 9 x 8" in found[bad["wrong size"]]


def test_skip_goes_on_with_the_rest(bad: dict[str, Path], tmp_path: Path) -> None:
    found = usable_records(tmp_path, split="train", on_error="skip")
    assert [record.path.name for record in found.records] == ["0.png", "1.png", "2.png"]
    assert len(found.skipped) == 5
    found = usable_records(tmp_path, split="test", on_error="skip")
    # An image whose mask is bad is left out as a whole.
    kept = [(record.defect_type, record.path.name) for record in found.records]
    assert kept == [("cut", "0.png"), *(("good", f"{number}.png") for number in range(3))]
    assert [problem.path for problem in found.skipped] == sorted(
        bad[key] for key in ("wrong size", "bad mask", "stray mask")
    )


def test_a_class_with_nothing_left_is_left_out_and_named(tmp_path: Path) -> None:
    make_class(tmp_path / "nut")
    truncate(picture(tmp_path / "bolt/train/good/0.png", (60, 50)))
    (tmp_path / "pin/train/good").mkdir(parents=True)
    found = usable_records(tmp_path, split="train", on_error="skip")
    assert {record.class_name for record in found.records} == {"nut"}
    named = [problem.path.relative_to(tmp_path) for problem in found.skipped]
    assert named == [
        *(Path("bolt"), Path("bolt/train/good/0.png")),
        *(Path("pin"), Path("pin/train/good")),
    ]
    assert "class 'bolt' has no usable image left to train on" in found.skipped[0].message


@pytest.mark.parametrize("split", ["train", "test"])
def test_nothing_left_at_all_is_an_error_with_the_list(tmp_path: Path, split: Split) -> None:
    path = truncate(picture(tmp_path / f"nut/{split}/good/0.png", (60, 50)))
    with pytest.raises(DataError, match="nothing is left to use") as caught:
        usable_records(tmp_path, split=split, on_error="skip")
    assert str(path) in str(caught.value)
    with pytest.raises(BadFilesError):
        usable_records(tmp_path, split=split)


def test_a_manifest_is_checked_alike(bad: dict[str, Path], tmp_path: Path) -> None:
    records = list(usable_records(tmp_path, split="train", on_error="skip").records)
    manifest = tmp_path / "parts.csv"
    write_manifest(records, manifest)
    with manifest.open("a") as file:
        file.write("nut/train/good/a.png,nut,train,good,\nnut/train/good/z.png,nut,train,good,\n")
        file.write("nut/train/good/c.jpg,bolt,train,good,\n")
    with pytest.raises(BadFilesError, match="3 problems"):
        usable_records(manifest, split="train")
    found = usable_records(manifest, split="train", on_error="skip")
    assert found.records == tuple(records)
    assert {problem.path for problem in found.skipped} == {
        *(bad["truncated"], bad["no image"], tmp_path / "nut/train/good/z.png", manifest)
    }
    assert any(f"{manifest}:6: path: expected" in problem.message for problem in found.skipped)


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bolt", "nut"):
        make_class(tmp_path / name)
    scandir = os.scandir
    closed = tmp_path / "bolt/test/cut"

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = usable_records(tmp_path, split="test", on_error="skip")
    assert len(found.records) == 9
    assert [problem.path for problem in found.skipped] == [closed]
    assert "cannot be listed (Permission denied)" in found.skipped[0].message


def test_another_word_for_on_error_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='expected "stop" or "skip", got \'ignore\''):
        usable_records(tmp_path, split="test", on_error="ignore")  # type: ignore[arg-type]


def test_threads_answer_in_order_and_read_only_a_little_ahead() -> None:
    begun = 0
    lock = threading.Lock()

    def slow_first(number: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    answers = in_threads(slow_first, range(500), label="", progress=False)
    assert next(answers) == 0
    assert begun <= 3 * len(os.sched_getaffinity(0)) + 1
    assert list(answers) == [number * number for number in range(1, 500)]
    assert list(in_threads(slow_first, [], label="", progress=False)) == []


def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0, 1], label="", progress=False))


def test_an_interruption_does_not_wait_for_what_is_being_read() -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    def hang(_: int) -> bool:
        begun.release()
        return gate.wait(60)

    def interrupt() -> None:
        begun.acquire()
        # To the process, as the terminal does.
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(in_threads(hang, range(1000), label="", progress=False))
    waited = time.monotonic() - start
    gate.set()
    thread.join()
    assert waited < 30
