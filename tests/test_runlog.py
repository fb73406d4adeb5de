"""The records of a run folder, also of runs that end badly."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from mambaadv2 import __version__
from mambaadv2.runlog import RunLog, environment, settings_of

FIELDS = {
    *["epoch", "step", "loss", "loss_terms", "lr", "grad_norm", "images_per_second", "seconds"],
}


@dataclass
class Settings:
    seed: int = 3
    size: tuple[int, int] = (64, 96)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mambaadv2.runlog.time", clock)
    return clock


@pytest.fixture(autouse=True)
def _without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed must not change what these tests see."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def new_log(folder: Path, *, progress: bool = False) -> RunLog:
    return RunLog(folder, progress=progress, settings=settings_of(training=Settings()))


def record(log: RunLog, epoch: int, step: int, loss: float, done: float = 0.5) -> None:
    terms = {"mse_8x8": loss, "mse_4x4": 2 * loss}
    log.step(epoch, step, terms, norm=loss / 2, rate=0.1 / step, images=4, done=done)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_per_epoch_holds_its_means(tmp_path: Path, clock: Clock) -> None:
    with new_log(tmp_path) as log:
        clock.now += 50  # features: not the first epoch's time
        log.begin()
        for step, (epoch, loss) in enumerate([(1, 1.0), (1, 3.0), (2, 5.0)], start=1):
            clock.now += 2
            record(log, epoch, step, loss, done=step / 3)
    first, second = lines(tmp_path)
    assert set(first) == FIELDS
    assert (first["epoch"], first["step"], first["lr"]) == (1, 2, 0.05)
    assert first["loss_terms"] == {"mse_8x8": 2.0, "mse_4x4": 4.0}
    assert first["loss"] == 6.0
    assert first["grad_norm"] == 1.0
    assert first["images_per_second"] == pytest.approx(2)
    assert first["seconds"] == pytest.approx(54)
    assert (second["epoch"], second["step"], second["loss"]) == (2, 3, 15.0)
    assert second["images_per_second"] == pytest.approx(2)


@pytest.mark.parametrize("error", [None, RuntimeError("stop"), KeyboardInterrupt()])
def test_an_unfinished_epoch_is_written_too(tmp_path: Path, error: BaseException | None) -> None:
    log = new_log(tmp_path)
    log.__enter__()
    log.begin()
    record(log, 1, 1, 1.0)
    log.__exit__(None if error is None else type(error), error, None)
    (line,) = lines(tmp_path)
    assert (line["epoch"], line["step"], line["loss"]) == (1, 1, 3.0)
    root = ElementTree.fromstring((tmp_path / "loss.svg").read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")


def test_the_end_of_the_run_is_written_at_once_and_once(tmp_path: Path) -> None:
    with new_log(tmp_path) as log:
        log.begin()
        record(log, 1, 1, 1.0, done=1.0)
        assert len(lines(tmp_path)) == 1
    assert len(lines(tmp_path)) == 1


def test_without_a_step_there_is_no_curve(tmp_path: Path) -> None:
    with new_log(tmp_path):
        pass
    assert lines(tmp_path) == []
    assert not (tmp_path / "loss.svg").exists()


def test_a_second_run_starts_its_records_anew(tmp_path: Path) -> None:
    for losses in ([1.0, 2.0], [3.0]):
        with new_log(tmp_path) as log:
            log.begin()
            for epoch, loss in enumerate(losses, start=1):
                record(log, epoch, epoch, loss)
    assert [line["loss"] for line in lines(tmp_path)] == [9.0]


def test_settings_and_environment_are_on_disk_from_the_start(tmp_path: Path) -> None:
    with new_log(tmp_path):
        config = json.loads((tmp_path / "config.json").read_text())
        assert config == {"training": {"seed": 3, "size": [64, 96]}}
        assert json.loads((tmp_path / "environment.json").read_text()) == environment()


def test_environment_names_versions_and_no_machine() -> None:
    found = environment()
    assert found["mambaadv2"] == __version__
    assert set(found) == {
        *["mambaadv2", "python", "torch", "system", "processor", "cpu_capability"],
        *["threads", "gpu"],
    }


@pytest.mark.parametrize("progress", [True, False])
def test_people_are_told_on_stderr_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    with new_log(tmp_path, progress=progress) as log:
        log.say("hello")
        with log.bar(3, "features") as tick:
            tick(3)
        log.begin()
        record(log, 1, 1, 1.0, done=1.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    # No bar without a terminal: it would fill log files with control characters.
    assert captured.err.strip() == ("hello" if progress else "")


@dataclass
class Board:
    folder: str
    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    closed: bool = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards: list[Board] = []

    def writer(folder: str, purge_step: int | None) -> Board:
        assert purge_step is None
        boards.append(Board(folder))
        return boards[-1]

    stand_in = SimpleNamespace(SummaryWriter=writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    with new_log(tmp_path) as log:
        log.begin()
        record(log, 1, 7, 1.0)
    (board,) = boards
    assert board.folder == str(tmp_path / "tensorboard")
    assert ("loss", 3.0, 7) in board.scalars
    assert {name for name, _, _ in board.scalars} < FIELDS
    assert board.closed


def test_a_resumed_log_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, clock: Clock) -> None:
    def run(folder: Path, *, interrupted: bool) -> list[dict[str, Any]]:
        folder.mkdir()
        log = new_log(folder)
        log.begin()
        for step, epoch in enumerate([1, 1, 2, 2, 3], start=1):
            clock.now += step
            record(log, epoch, step, step / 3, done=step / 5)
            if interrupted and step == 3:
                facts = json.loads(json.dumps(log.facts()))
                clock.now += 5
                record(log, 2, 4, 99.0)  # done again after the snapshot
                log.__exit__(RuntimeError, RuntimeError("killed"), None)
                clock.now += 1000  # the machine is off
                settings = settings_of(training=Settings())
                log = RunLog(folder, progress=False, settings=settings, resumed=facts)
                log.begin()
        log.__exit__(None, None, None)
        return lines(folder)

    whole = run(tmp_path / "whole", interrupted=False)
    assert run(tmp_path / "resumed", interrupted=True) == whole
    curves = [(tmp_path / name / "loss.svg").read_text() for name in ("whole", "resumed")]
    assert curves[0] == curves[1]


def test_lines_that_a_power_cut_tore_are_cut_off(tmp_path: Path) -> None:
    with new_log(tmp_path) as log:
        log.begin()
        for epoch in (1, 2, 3):
            record(log, epoch, epoch, 1.0)
        facts = log.facts()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: facts["bytes"] - 5])
    with RunLog(tmp_path, progress=False, settings={}, resumed=facts) as log:
        record(log, 4, 4, 1.0)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 3, 4]


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with new_log(tmp_path) as log:
        log.begin()
        for epoch in range(1, 100):  # more than any buffer holds
            record(log, epoch, epoch, 1.0)
        with pytest.raises(OSError, match="No space"):
            log.facts()
        # Room again: nothing was lost.
        log._lines.close()
        (tmp_path / "metrics.jsonl").unlink()
        log._lines = (tmp_path / "metrics.jsonl").open("ab", buffering=0)
    assert [line["epoch"] for line in lines(tmp_path)] == list(range(1, 100))
    assert (tmp_path / "loss.svg").exists()
