"""What is finished stays finished: `predict` killed, stopped, out of space, and gone on with."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.tiny_model import SIDE, TINY

from mambaadv2 import predict_folder, readers, rehearsal
from mambaadv2.errors import CheckpointError, ConfigError, RunBusyError, WorkerError
from mambaadv2.files import locked
from mambaadv2.fit import TrainConfig
from mambaadv2.image import write_png
from mambaadv2.predict import predict_to_folder
from mambaadv2.predict_folder import NAME_BYTES, still_to_do
from mambaadv2.readers import Readers
from mambaadv2.train import train_model

BATCH, PATIENCE = 4, 300.0  # seconds, for a loaded machine
IMAGES = 160  # enough for time to interrupt, and for processes that read


def draw(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    grey = 60 + 120.0 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
    noisy = grey[:, :, None] + rng.normal(0, 8, (SIDE, SIDE, 3))
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


@dataclass(frozen=True)
class Case:
    """A model, images of which one cannot be read and two have one name, and what they give."""

    run: Path
    images: Path
    whole: Path


def predict(run: Path, images: Path, out: Path, **options: Any) -> int:
    options = {"raw": True, "batch_size": BATCH, "progress": False, **options}
    return predict_to_folder(run, [str(images)], out, device="cpu", **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("resume")
    good = root / "data" / "disc" / "train" / "good"
    images = root / "images"
    good.mkdir(parents=True)
    images.mkdir()
    for i in range(8):
        write_png(good / f"{i}.png", draw(i))
    config = TrainConfig(epochs=1, batch_size=4, device="cpu")
    run = train_model(root / "data", root / "run", TINY, config, progress=False)
    for i in range(13):
        write_png(images / f"{i:02d}.png", draw(100 + i))
    (images / "05.png").write_bytes(b"no image")
    Image.fromarray(draw(200)).save(images / "07.bmp")
    assert predict(run, images, root / "whole") == 1
    return Case(run, images, root / "whole")


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def content(out: Path) -> dict[str, object]:
    """Every file below a folder; of the lines everything but the times."""
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    found["predictions.jsonl"] = [
        {name: value for name, value in line.items() if name != "ms"} for line in lines(out)
    ]
    return found


def assert_as_if_never_interrupted(out: Path, whole: Path) -> None:
    found, expected = content(out), content(whole)
    assert found["predictions.jsonl"] == expected["predictions.jsonl"]
    assert found == expected


def test_a_line_for_each_image_and_what_made_them(case: Case) -> None:
    names = [f"{i:02d}.png" for i in range(13)]
    names.insert(7, "07.bmp")
    found = lines(case.whole)
    assert [Path(line["path"]).name for line in found] == names
    assert [line["path"] for line in found if "error" in line] == [str(case.images / "05.png")]
    made = json.loads((case.whole / "predict.json").read_text())
    model = json.loads((case.run / "model.json").read_text())
    rules, marks, held = (
        made.pop(name) for name in ("threshold_rules", "colour_marks", "held_out_sha256")
    )
    assert made == {
        "schema_version": 3,
        "weights_sha256": model["weights_sha256"],
        "thresholds": model["thresholds"],
        "colour_scale": model["colour_scale"],
        "min_area": 1,
        "raw": True,
    }
    assert set(rules) == set(marks) == {"disc"}
    assert rules["disc"].startswith("1 % is assumed, not guaranteed: ")
    assert len(held) == 64


@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_the_file_was_cut_the_rest_is_added(
    case: Case, tmp_path: Path, data: st.DataObject
) -> None:
    text = (case.whole / "predictions.jsonl").read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    tail = data.draw(st.sampled_from([b"", b"\0" * 300])) if text[:cut].endswith(b"\n") else b""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(case.whole, out)
    (out / "predictions.jsonl").write_bytes(text[:cut] + tail)
    finished = text[:cut].count(b"\n")
    for line in lines(case.whole)[finished:]:
        if "overlay" in line:  # not there yet, or a part of it
            (out / line["overlay"]).write_bytes(b"half a picture")
            (out / line["map"]).unlink()
    assert predict(case.run, case.images, out, resume=True) == 1
    assert_as_if_never_interrupted(out, case.whole)
    # The lines that were there are there to the byte: not predicted again.
    whole = text[: text[:cut].rfind(b"\n") + 1]
    assert (out / "predictions.jsonl").read_bytes().startswith(whole)


def test_nothing_is_done_when_all_is_done(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(case.whole, tmp_path / "out")
    before = (out / "predictions.jsonl").read_bytes()
    monkeypatch.setattr(Readers, "image", None)
    assert predict(case.run, case.images, out, resume=True, progress=True) == 1
    assert (out / "predictions.jsonl").read_bytes() == before
    assert_as_if_never_interrupted(out, case.whole)
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "14 of 14 images were finished before"
    assert said[-1].startswith("14 images: ")


def test_resume_begins_where_there_is_nothing_and_without_it_all_is_anew(
    case: Case, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict(case.run, case.images, out, resume=True) == 1
    assert_as_if_never_interrupted(out, case.whole)
    predict(case.run, case.images / "00.png", out)
    assert len(lines(out)) == 1


def test_images_that_came_since_are_added_and_those_that_went_stay(
    case: Case, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(case.images, images)
    predict(case.run, images, out)
    before = (out / "predictions.jsonl").read_bytes()
    (images / "03.png").unlink()
    Image.fromarray(draw(300)).save(images / "00.bmp")
    write_png(images / "99.png", draw(301))
    assert predict(case.run, images, out, resume=True) == 1
    after = (out / "predictions.jsonl").read_bytes()
    assert after.startswith(before)
    new = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert [Path(line["path"]).name for line in new] == ["00.bmp", "99.png"]
    overlays = [line["overlay"] for line in lines(out) if "overlay" in line]
    assert len(set(overlays)) == len(overlays)
    assert all((out / name).is_file() for name in overlays)


@given(
    paths=st.lists(st.sampled_from("abcde"), max_size=12),
    earlier=st.lists(st.sampled_from("abcdef"), max_size=8),
    done=st.integers(0, 12),
    batch=st.integers(1, 5),
)
def test_every_path_is_done_as_often_as_it_is_given(
    paths: list[str], earlier: list[str], done: int, batch: int
) -> None:
    todo, repeated = still_to_do(paths, paths[:done], batch)
    assert todo[repeated:] == paths[done:]
    assert repeated < batch
    assert (len(paths) - len(todo)) % batch == 0 or not todo
    todo, repeated = still_to_do(paths, earlier, batch)
    for path in "abcde":
        given, had = paths.count(path), earlier.count(path)
        assert todo[repeated:].count(path) == max(0, given - had)


def test_another_model_or_other_options_are_refused_by_name(case: Case, tmp_path: Path) -> None:
    out, run = shutil.copytree(case.whole, tmp_path / "out"), tmp_path / "run"
    before = content(out)
    shutil.copytree(case.run, run)
    card = json.loads((run / "model.json").read_text())
    card["thresholds"] = {"disc": 7.5}
    (run / "model.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError) as refused:
        predict(run, case.images, out, raw=False, resume=True)
    message = str(refused.value)
    assert message.startswith(f"{out / 'predict.json'}: the lines there were made otherwise:\n")
    assert "  raw: true there, false now\n" in message
    assert '{"disc": 7.5} now\n' in message
    assert "weights_sha256" not in message
    assert content(out) == before
    # Without lines there is nothing to protect.
    (out / "predictions.jsonl").write_bytes(b'{"path": "torn')
    predict(run, case.images / "00.png", out, raw=False, resume=True)
    assert json.loads((out / "predict.json").read_text())["thresholds"] == {"disc": 7.5}


@pytest.mark.parametrize("note", [None, b"{", b"[]"])
def test_lines_that_nobody_answers_for_are_refused(
    case: Case, tmp_path: Path, note: bytes | None
) -> None:
    out = shutil.copytree(case.whole, tmp_path / "out")
    (out / "predict.json").unlink()
    if note is not None:
        (out / "predict.json").write_bytes(note)
    before = content(out)
    with pytest.raises(CheckpointError, match=r"predict\.json: (cannot be read|expected a JSON)"):
        predict(case.run, case.images, out, resume=True)
    assert content(out) == before


@pytest.mark.parametrize("wrong", [b"{}", b"nothing", b'{"path": "a.png"}', b'{"path": 1}', b"[]"])
def test_a_line_of_something_else_is_refused(case: Case, tmp_path: Path, wrong: bytes) -> None:
    out = shutil.copytree(case.whole, tmp_path / "out")
    text = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    text[2] = wrong + b"\n"
    (out / "predictions.jsonl").write_bytes(b"".join(text))
    with pytest.raises(CheckpointError, match=r"predictions\.jsonl: line 3 is none that predict"):
        predict(case.run, case.images, out, resume=True)
    assert (out / "predictions.jsonl").read_bytes() == b"".join(text)


def test_a_folder_in_use_is_refused(case: Case, tmp_path: Path) -> None:
    out = shutil.copytree(case.whole, tmp_path / "out")
    for resume in (True, False):
        with locked(out), pytest.raises(RunBusyError, match=str(out)):
            predict(case.run, case.images, out, resume=resume)
        assert_as_if_never_interrupted(out, case.whole)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_while_a_picture_is_written(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = 0

    def write(path: Path, pixels: NDArray[np.uint8]) -> None:
        nonlocal pictures
        pictures += 1
        if pictures == 6:
            path.write_bytes(b"half a pic")
            raise full_disk()
        write_png(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(predict_folder, "write_png", write)
        # The sixth picture is of the seventh image: the fifth cannot be read.
        message = r"out: cannot write to .*No space left on device\).* 6 of 14 lines are finished, "
        with pytest.raises(ConfigError, match=message + "--resume adds the others"):
            predict(case.run, case.images, tmp_path / "out")
    assert len(lines(tmp_path / "out")) == 6
    predict(case.run, case.images, tmp_path / "out", resume=True)
    assert_as_if_never_interrupted(tmp_path / "out", case.whole)


def test_a_disk_that_fills_in_the_middle_of_a_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = 0, os.write

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal written
        if written > 500:
            raise full_disk()
        written += real(descriptor, data[:300])
        return min(300, len(data))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(ConfigError, match=r"No space left on device.* 0 of 14 lines"):
            predict(case.run, case.images, tmp_path / "out")
    assert lines(tmp_path / "out") == []
    predict(case.run, case.images, tmp_path / "out", resume=True)
    assert_as_if_never_interrupted(tmp_path / "out", case.whole)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_request_to_stop_ends_at_a_whole_line(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    expected: type[BaseException],
) -> None:
    drawn = 0

    def write(path: Path, pixels: NDArray[np.uint8]) -> None:
        nonlocal drawn
        drawn += 1
        if drawn == 6:
            os.kill(os.getpid(), number)
        write_png(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(predict_folder, "write_png", write)
        with pytest.raises(expected) as stop:
            predict(case.run, case.images, tmp_path / "out", progress=True)
    if isinstance(stop.value, SystemExit):
        assert stop.value.code == 143
    # The sixth picture is of the seventh image: the fifth cannot be read.
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == (
        f"stopped by {number.name}: 7 of 14 lines are finished, --resume adds the others"
    )
    assert len(lines(tmp_path / "out")) == 7
    predict(case.run, case.images, tmp_path / "out", resume=True)
    assert_as_if_never_interrupted(tmp_path / "out", case.whole)


def dying(names: set[str]) -> Callable[[Readers, Path], Future[NDArray[np.uint8]]]:
    """`Readers.image`, whose process dies on these files."""
    original = Readers.image

    def read(self: Readers, path: Path) -> Future[NDArray[np.uint8]]:
        if path.name not in names:
            return original(self, path)
        future: Future[NDArray[np.uint8]] = Future()
        future.set_exception(WorkerError(f"{path}: the process that read this image was killed"))
        return future

    return read


def test_a_reader_that_dies_costs_one_image(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Readers, "image", dying({"02.png", "03.png", "12.png"}))
    assert predict(case.run, case.images, tmp_path / "out") == 4
    failed = [Path(line["path"]).name for line in lines(tmp_path / "out") if "error" in line]
    assert failed == ["02.png", "03.png", "05.png", "12.png"]
    assert len(lines(tmp_path / "out")) == 14


def test_readers_that_die_one_after_the_other_are_the_machine_s_fault(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Readers, "image", dying({f"{i:02d}.png" for i in range(8, 13)}))
        with pytest.raises(WorkerError, match=r"1\d\.png: .*; \d+ of 14 lines are finished, --res"):
            predict(case.run, case.images, tmp_path / "out")
    kept = lines(tmp_path / "out")
    assert 8 <= len(kept) < 12
    assert sum("error" in line for line in kept) <= 2


def test_a_killed_process_is_replaced(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = readers._Process.ask

    def ask(self: readers._Process, kind: readers.Kind, path: Path, size: Any) -> Any:
        if path.name == "04.png":
            popen = self._started(path)
            popen.kill()
            popen.wait()
        return original(self, kind, path, size)

    monkeypatch.setattr(readers._Process, "ask", ask)
    monkeypatch.setattr(rehearsal, "readers_for", lambda _: 2)
    assert predict(case.run, case.images, tmp_path / "out") == 2
    *_, killed, unreadable = [line for line in lines(tmp_path / "out") if "error" in line]
    assert "04.png: the process that read this image was killed" in killed["error"]
    assert "05.png" in unreadable["error"]
    assert len(lines(tmp_path / "out")) == 14


def test_a_long_name_is_shortened_and_stays_unique(case: Case, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["ö" * 100] * 3)
    folder.mkdir(parents=True)
    for suffix in ("bmp", "png"):
        Image.fromarray(draw(0)).save(folder / f"{'x' * 200}.{suffix}")
    assert predict(case.run, folder, tmp_path / "out") == 0
    names = [os.fsencode(line["overlay"]) for line in lines(tmp_path / "out")]
    assert len(set(names)) == 2
    assert all(len(name) <= NAME_BYTES + 20 for name in names)


@pytest.fixture(scope="module")
def many(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """As `case`, with `IMAGES` images."""
    root = tmp_path_factory.mktemp("many")
    (root / "images").mkdir()
    for i in range(IMAGES):
        write_png(root / "images" / f"{i:03d}.png", draw(1000 + i))
    (root / "images" / "100.png").write_bytes(b"no image")
    predict(case.run, root / "images", root / "whole")
    return Case(case.run, root / "images", root / "whole")


def start(case: Case, out: Path) -> subprocess.Popen[str]:
    command = ["predict", str(case.run), str(case.images), "--out", str(out), "--raw", "--resume"]
    command += ["--batch-size", str(BATCH), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "mambaadv2", *command], stderr=subprocess.PIPE, text=True
    )


def finished_lines(out: Path) -> int:
    path = out / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process: subprocess.Popen[str], out: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while finished_lines(out) < count:
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def moments() -> list[int]:
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments of seed {seed}")  # shown when the test fails
    return sorted(random.Random(seed).sample(range(1, IMAGES - 50), 3))


@pytest.mark.slow
def test_a_process_that_is_killed_and_stopped_ends_as_if_it_had_not_been(
    many: Case, tmp_path: Path, moments: list[int]
) -> None:
    out = tmp_path / "out"
    for number, moment in zip(
        (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), moments, strict=True
    ):
        # A line of its own first: one that is starting is not listening to signals yet.
        earlier = finished_lines(out)
        with start(many, out) as process:
            wait_for_lines(process, out, max(moment, earlier + 1))
            process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE)
        if number == signal.SIGKILL:
            assert process.returncode == -9
        else:
            assert process.returncode == 143
            count = f"{len(lines(out))} of {IMAGES} lines are finished"
            assert said.splitlines()[-1] == f"stopped by SIGTERM: {count}, --resume adds the others"
    assert predict(many.run, many.images, out, resume=True) == 1
    assert_as_if_never_interrupted(out, many.whole)
