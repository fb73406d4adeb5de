"""Runs that are killed, stopped or repeated: nothing lost, the same bits in the end."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambaadv2.checkpoint import read_card
from mambaadv2.errors import CheckpointError, ConfigError, RunBusyError, TrainingInterruptedError
from mambaadv2.files import locked
from mambaadv2.fit import TimePlan, TrainConfig
from mambaadv2.image import write_png
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.scoring import class_descriptor
from mambaadv2.resume import differences
from mambaadv2.snapshot import Snapshots
from mambaadv2.train import train_model

MODEL = ModelConfig(
    encoder="tf_efficientnet_lite0",
    image_size=(64, 64),
    dims=(32, 16, 16),
    modules=((1,), (1,), (1,)),
    directions=(1, 1, 2),
    head_dim=16,
    state_dim=8,
    drop_path=0.1,  # draws random numbers while training
    score="whitened",
)
EPOCHS = 10
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=3, device="cpu", save_seconds=0.01)
# More of them, once in a while: MAMBAADV2_SEEDS=20 scripts/test tests/test_resume.py -k killed
SEEDS = range(int(os.environ.get("MAMBAADV2_SEEDS", "2")))
TIMES = ("seconds", "images_per_second")

# Runs trainings as forks of one process that has imported everything and started no thread, each
# with its way to die: after so many seconds, or in the middle of writing the n-th file.
FORKS = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from mambaadv2 import files, snapshot
from mambaadv2.train import train_model
from tests_resume_settings import CONFIG, MODEL
snapshot.Snapshots.due = lambda self: True  # after every step
data, out, plans = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
really = os.fsync
def say(fact):
    os.write(1, (json.dumps(fact) + "\\n").encode())  # a line or nothing
for plan in plans:
    calls = 0
    def fsync(handle):
        global calls
        calls += 1
        if calls == plan.get("write"):
            if os.readlink(f"/proc/self/fd/{handle}").endswith(".tmp"):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        really(handle)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        files.os.fsync = fsync
        try:
            train_model(data, out, MODEL, CONFIG, resume=plan["resume"], progress=False)
            say({"writes": calls})
        except BaseException as error:
            say({"error": repr(error)})
            os._exit(1)
        os._exit(0)
    if "seconds" in plan:
        time.sleep(plan["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    say({"code": code, "seconds": time.monotonic() - start})
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number, kind in enumerate(("disc", "stripes")):
        good = root / kind / "train" / "good"
        good.mkdir(parents=True)
        for i in range(6):
            rng = np.random.default_rng((number, i))
            pixels = 60 + 100 * number + rng.normal(0, 9, (64, 64, 3))
            write_png(good / f"{i:03d}.png", np.clip(pixels, 0, 255).astype(np.uint8))
    return root


def forks(data: Path, out: Path, plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the plans one after the other on one folder; what each of them said at its end."""
    folder = out.parent / "settings"
    folder.mkdir(exist_ok=True)
    (folder / "tests_resume_settings.py").write_text(
        "from mambaadv2.fit import TrainConfig\n"
        "from mambaadv2.model.config import ModelConfig\n"
        f"MODEL = {MODEL!r}\nCONFIG = {CONFIG!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(data), str(out), json.dumps(plans)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [line for line in said if "error" in line], said
    return said


def quiet(data: Path, out: Path, **more: Any) -> Path:
    config = more.pop("config", CONFIG)
    return train_model(data, out, more.pop("model", MODEL), config, progress=False, **more)


def content(run: Path) -> tuple[bytes, list[dict[str, Any]], object, str]:
    """Everything of a finished run that does not tell the time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in TIMES:
            line.pop(name)
    card, _ = read_card(run)
    training = {name: value for name, value in card.training.items() if name != "seconds"}
    return (
        (run / "model.safetensors").read_bytes(),
        lines,
        dataclasses.replace(card, training=training),
        (run / "loss.svg").read_text(),
    )


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted."""

    run: Path
    seconds: float
    writes: int


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("whole") / "run"
    writes, end = forks(data, run, [{"resume": False}])
    assert end["code"] == 0
    return Whole(run, end["seconds"], writes["writes"])


def test_the_whole_run_leaves_nothing_to_resume(whole: Whole) -> None:
    assert not (whole.run / "resume").exists()
    assert not [path for path in whole.run.iterdir() if path.name.startswith(".")]
    assert len(content(whole.run)[1]) == EPOCHS
    # A snapshot after every step, of three writes: records, file, folder.
    assert whole.writes > 3 * 3 * EPOCHS


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    data: Path, whole: Whole, tmp_path: Path, seed: int
) -> None:
    moments = random.Random(seed)
    plans: list[dict[str, Any]] = [
        {"resume": True, "seconds": moments.uniform(0.1, 0.9) * whole.seconds} for _ in range(3)
    ]
    said = forks(data, tmp_path / "run", [*plans, {"resume": True}])
    assert [line["code"] for line in said if "code" in line][-1] == 0
    assert content(tmp_path / "run") == content(whole.run)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in whole.run.iterdir()}


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_while_writing_it_ends_in_the_same_bits(
    data: Path, whole: Whole, tmp_path: Path, seed: int
) -> None:
    moments = random.Random(100 + seed)
    # Fewer and fewer, since a resumed run has less to write.
    writes = sorted(moments.sample(range(1, whole.writes + 1), 3), reverse=True)
    plans: list[dict[str, Any]] = [{"resume": True, "write": write} for write in writes]
    said = forks(data, tmp_path / "run", [*plans, {"resume": True}])
    codes = [line["code"] for line in said if "code" in line]
    assert codes[0] == -signal.SIGKILL
    assert codes[-1] == 0
    assert content(tmp_path / "run") == content(whole.run)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in whole.run.iterdir()}


def test_killed_as_it_begins_where_another_run_was(
    data: Path, whole: Whole, tmp_path: Path
) -> None:
    older = dataclasses.replace(CONFIG, epochs=1)
    quiet(data, tmp_path / "run", config=older)
    plans: list[dict[str, Any]] = [{"resume": False, "write": write} for write in range(1, 8)]
    said = forks(data, tmp_path / "run", [*plans, {"resume": True}])
    codes = [line["code"] for line in said if "code" in line]
    assert codes == [*[-signal.SIGKILL] * len(plans), 0]
    assert content(tmp_path / "run") == content(whole.run)


@pytest.fixture(scope="module")
def killed(data: Path, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after a few snapshots."""
    run = tmp_path_factory.mktemp("killed") / "run"
    _ = forks(data, run, [{"resume": False, "write": whole.writes * 2 // 3}])
    assert len(list((run / "resume").glob("step-*"))) >= 2
    return run


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    """A copy to go on with."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def test_a_damaged_newest_snapshot_is_told_and_the_one_before_used(
    data: Path, whole: Whole, unfinished: Path
) -> None:
    newest = max((unfinished / "resume").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-7])
    said = forks(data, unfinished, [{"resume": True}])
    assert said[-1]["code"] == 0
    assert content(unfinished) == content(whole.run)


def test_people_are_told_from_where_it_goes_on(
    data: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = sorted((unfinished / "resume").glob("step-*"))[-2:]
    newest.write_bytes(b"")
    train_model(data, unfinished, MODEL, CONFIG, resume=True)
    told = capsys.readouterr().err
    assert f"{newest}: damaged" in told
    assert f"going on after step {int(older.name.split('-')[1])}\n" in told


def test_an_unfinished_run_is_not_begun_anew_by_accident(data: Path, unfinished: Path) -> None:
    before = {path: path.read_bytes() for path in (unfinished / "resume").iterdir()}
    with pytest.raises(ConfigError, match=r"out: .* unfinished run; go on with it by --resume"):
        quiet(data, unfinished)
    assert {path: path.read_bytes() for path in (unfinished / "resume").iterdir()} == before


def test_another_configuration_is_refused_field_by_field(data: Path, unfinished: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=9, learning_rate=1e-3, save_seconds=5.0)
    other = dataclasses.replace(MODEL, sigma=3.0)
    with pytest.raises(CheckpointError) as caught:
        quiet(data, unfinished, config=config, model=other, resume=True)
    text = str(caught.value)
    assert "  model.sigma: 4.0 in the run, 3.0 now\n" in text
    assert "  training.epochs: 10 in the run, 9 now\n" in text
    assert "  training.learning_rate: 0.005 in the run, 0.001 now\n" in text
    assert text.count(" in the run, ") == 3


def changed(data: Path, folder: Path) -> Path:
    return Path(shutil.copytree(data, folder / "changed"))


def test_other_data_is_refused_file_by_file(data: Path, unfinished: Path, tmp_path: Path) -> None:
    root = changed(data, tmp_path)
    good = root / "disc" / "train" / "good"
    write_png(good / "001.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(CheckpointError, match=r"disc/train/good/001\.png has changed"):
        quiet(root, unfinished, resume=True)
    shutil.rmtree(root / "stripes")
    with pytest.raises(CheckpointError, match=r"data\.learn\.stripes: .* is gone\n"):
        quiet(root, unfinished, resume=True)


def test_data_may_move_and_caches_may_change(
    data: Path, whole: Whole, unfinished: Path, tmp_path: Path
) -> None:
    root = changed(data, tmp_path)
    config = dataclasses.replace(CONFIG, cache="disk", save_seconds=60.0)
    quiet(root, unfinished, resume=True, config=config)
    assert len(content(unfinished)[1]) == len(content(whole.run)[1])


def test_without_its_records_a_run_cannot_be_compared(data: Path, unfinished: Path) -> None:
    (unfinished / "data.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"data\.json: cannot be read"):
        quiet(data, unfinished, resume=True)


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_snapshot_is_never_taken_without_comparing(
    data: Path, unfinished: Path, name: str
) -> None:
    (unfinished / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read .*cannot be compared"):
        quiet(data, unfinished, resume=True, config=dataclasses.replace(CONFIG, seed=7))


def test_a_finished_run_needs_no_data_any_more(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(tmp_path / "gone", whole.run, MODEL, CONFIG, resume=True)
    assert "finished already" in capsys.readouterr().err


def test_a_signal_while_calibrating_ends_too(
    data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(features: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return class_descriptor(features)

    with monkeypatch.context() as patch:
        patch.setattr("mambaadv2.heldout.class_descriptor", asked)
        with pytest.raises(TrainingInterruptedError, match="no step was lost"):
            quiet(data, tmp_path / "run")
    monkeypatch.setattr("mambaadv2.fit.reconstruction_loss", None)  # nothing is left to train
    quiet(data, tmp_path / "run", resume=True)
    assert len(content(tmp_path / "run")[1]) == EPOCHS


def test_a_finished_run_is_left_as_it_is(
    data: Path, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole.run, tmp_path / "run"))
    before = content(run)
    train_model(data, run, MODEL, CONFIG, resume=True)
    assert "finished already" in capsys.readouterr().err
    assert content(run) == before
    with pytest.raises(CheckpointError, match=r"training\.seed: 0 in the run, 1 now"):
        quiet(data, run, resume=True, config=dataclasses.replace(CONFIG, seed=1))
    assert content(run) == before


def test_a_folder_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunBusyError, match="is writing to this folder"):
        quiet(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_the_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("mambaadv2.prepare.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"has 1 MB free, this run needs about \d+ MB"):
        quiet(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_does_not_end_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mambaadv2.snapshot.write_atomically", full)
    train_model(data, tmp_path / "run", MODEL, dataclasses.replace(CONFIG, epochs=2))
    told = capsys.readouterr().err
    assert "could not be saved (No space left on device); training goes on" in told
    assert read_card(tmp_path / "run")[0].training["steps"] == 6


def test_a_model_that_finds_no_room_is_written_later(
    data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mambaadv2.checkpoint.write_atomically", full)
        with pytest.raises(CheckpointError, match=r"could not be written \(No space .*--resume"):
            quiet(data, tmp_path / "run")
    # Nothing is left to train.
    monkeypatch.setattr("mambaadv2.fit.reconstruction_loss", None)
    quiet(data, tmp_path / "run", resume=True)
    assert len(content(tmp_path / "run")[1]) == len(content(whole.run)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(
    data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run that this one is compared with
    calls = 0

    def ask(_: Snapshots) -> bool:
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), number)
        return False

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Snapshots, "due", ask)
            with pytest.raises(TrainingInterruptedError, match="after step 8, which is saved") as c:
                quiet(data, tmp_path / "run")
        assert c.value.signal == number
        assert not (tmp_path / "run" / "model.json").exists()
        quiet(data, tmp_path / "run", resume=True)
    finally:
        torch.set_num_threads(threads)
    assert content(tmp_path / "run") == content(whole.run)


def test_a_signal_before_the_first_step_ends_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambaadv2 import prepare

    really = prepare.plan_features

    def asked(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return really(*args)

    monkeypatch.setattr(sys.modules["mambaadv2.train"], "plan_features", asked)
    with pytest.raises(TrainingInterruptedError, match=r"stopped by SIGTERM; no step was lost"):
        quiet(data, tmp_path / "run")


def test_a_run_by_the_clock_has_what_was_left_of_its_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, epochs=None, minutes=0.1, save_seconds=60.0)
    plans: list[TimePlan] = []
    module = sys.modules["mambaadv2.train"]
    steps = iter(range(1, 1000))

    def planned(start: float, end: float) -> TimePlan:
        # A clock that gains a second at every step, from the start of this process's part.
        plan = TimePlan(start=start, end=start + 40, clock=lambda: start + used[0] + next(steps))
        plans.append(dataclasses.replace(plan, end=end))
        return plan

    def asked(_: Snapshots) -> bool:
        if next(steps) > 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    used = [0.0]
    monkeypatch.setattr(module, "TimePlan", planned)
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "due", asked)
        with pytest.raises(TrainingInterruptedError):
            quiet(data, tmp_path / "run", config=config)
    snapshot, _ = Snapshots(tmp_path / "run", 60.0).newest()
    assert snapshot is not None
    before = snapshot.facts["plan"]
    assert 20 < before["used"] < 40
    assert before["length"] == 40
    used[0], steps = before["used"], iter(range(1, 1000))
    quiet(data, tmp_path / "run", config=config, resume=True)
    # The plan of the second part began so long ago, and is as long as it was.
    begun = plans[1].start
    assert time.monotonic() - begun > before["used"]
    assert plans[1].end - begun == pytest.approx(40)
    rates = [json.loads(x)["lr"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * rates[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_saves_and_says_how_to_go_on(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "mambaadv2", "train", str(data), "--out", str(tmp_path / "r")]
    command += ["--epochs", "500", "--image-size", "64", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "r" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert len(list((tmp_path / "r" / "resume").glob("step-*"))) == 1


def test_differences_name_every_field() -> None:
    recorded = {"a": {"b": 1, "c": [1, 2]}, "gone": 1, "same": {"x": None}}
    now = {"a": {"b": 2, "c": [1, 3]}, "new": 2, "same": {"x": None}}
    assert differences(recorded, now) == [
        "a.b: 1 in the run, 2 now",
        "a.c: [1, 2] in the run, [1, 3] now",
        "gone: 1 in the run, 'nothing' now",
        "new: 'nothing' in the run, 2 now",
    ]
