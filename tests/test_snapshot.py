"""Snapshots: whole or not there, the previous one kept, damage told and survived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mambaadv2.snapshot import (
    Snapshot,
    Snapshots,
    _read,
    restore_training,
    training_tensors,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mambaadv2.snapshot.time", clock)
    return clock


def snapshot(step: int) -> Snapshot:
    tensors = {
        "network/a": torch.full((2, 3), step / 3),
        "random/cpu": torch.arange(5, dtype=torch.uint8),
        "optimizer/step/a": torch.tensor(float(step)),
    }
    return Snapshot(step=step, tensors=tensors, facts={"loss": step / 7, "text": "ä", "n": [1]})


def filled(run: Path, *steps: int) -> Snapshots:
    snapshots = Snapshots(run, every=60)
    for step in steps:
        snapshots.save(snapshot(step))
    return snapshots


def steps_on_disk(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (run / "resume").iterdir())


def newest_step(snapshots: Snapshots) -> int | None:
    found, _ = snapshots.newest()
    return None if found is None else found.step


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    found, words = filled(tmp_path, 3).newest()
    assert found is not None
    assert words == []
    wanted = snapshot(3)
    assert (found.step, found.facts) == (3, wanted.facts)
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype


def test_the_previous_one_is_kept_and_older_ones_go(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 5, 10, 200)
    assert steps_on_disk(tmp_path) == [10, 200]
    assert newest_step(snapshots) == 200


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_newest_one_is_told_and_the_previous_used(tmp_path: Path, damage: str) -> None:
    snapshots = filled(tmp_path, 10, 20)
    older, newer = sorted((tmp_path / "resume").iterdir())
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 1
    content = {
        "cut": newer.read_bytes()[:-1],
        "flip": bytes(data),
        "empty": b"",
        "other": older.read_bytes(),
    }
    newer.write_bytes(content[damage])
    found, words = snapshots.newest()
    assert found is not None
    assert found.step == 10
    assert [str(newer) in word and "damaged" in word for word in words] == [True]
    # Going on from the older one, the damaged one is never taken for the previous one.
    snapshots.save(snapshot(15))
    assert steps_on_disk(tmp_path) == [10, 15]


def test_a_damaged_one_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    filled(tmp_path, 10, 20)
    max((tmp_path / "resume").iterdir()).write_bytes(b"")
    snapshots = Snapshots(tmp_path, every=60)
    assert newest_step(snapshots) == 10
    snapshots.save(snapshot(30))
    max((tmp_path / "resume").iterdir()).write_bytes(b"")
    assert newest_step(snapshots) == 10


def test_of_two_of_the_same_step_the_one_just_written_stays(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 10)
    for number in range(5):
        facts = {"number": number}
        snapshots.save(Snapshot(step=20, tensors={"a": torch.zeros(1)}, facts=facts))
        kept = [_read(path) for path in (tmp_path / "resume").glob("step-00000020-*")]
        assert number in [found.facts["number"] for found in kept if found is not None]
        assert len(list((tmp_path / "resume").iterdir())) == 2


def test_half_written_ones_of_killed_processes_do_not_pile_up(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 10)
    for number in range(3):
        (tmp_path / "resume" / f".step-1.safetensors.{number}.tmp").write_bytes(b"half")
    snapshots.tidy()
    assert steps_on_disk(tmp_path) == [10]


def test_with_every_one_damaged_there_is_none(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 10, 20)
    for path in (tmp_path / "resume").iterdir():
        path.write_bytes(b"{}")
    found, words = snapshots.newest()
    assert found is None
    assert len(words) == 2
    assert snapshots.exist()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = filled(tmp_path, 10, 20)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mambaadv2.files.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            snapshots.save(snapshot(30))
    assert steps_on_disk(tmp_path) == [10, 20]


def test_the_wait_grows_with_what_writing_costs(tmp_path: Path, clock: Clock) -> None:
    snapshots = Snapshots(tmp_path, every=60)
    assert not snapshots.due()
    clock.now += 60
    assert snapshots.due()
    snapshots.save(snapshot(1))
    assert not snapshots.due()
    snapshots._cost = 3.0
    clock.now += 149
    assert not snapshots.due()
    clock.now += 1
    assert snapshots.due()


def test_removing_leaves_no_trace_but_other_peoples_files(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 1, 2)
    (tmp_path / "resume" / ".step.99.tmp").write_bytes(b"half")
    snapshots.remove()
    snapshots.remove()
    assert list(tmp_path.iterdir()) == []
    filled(tmp_path, 1)
    (tmp_path / "resume" / "notes.txt").write_text("mine")
    snapshots.remove()
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["notes.txt"]


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)))
def test_floats_survive_json(values: dict[str, float]) -> None:
    # What snapshots rely on: a loss in the facts comes back to the bit.
    assert json.loads(json.dumps(values)) == values


class Toy(nn.Module):
    """As much of a network as snapshots look at."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.feature_scale = nn.Buffer(torch.ones(1))

    def trainable(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.named_parameters() if not n.startswith("encoder.")}


def steps(toy: Toy, optimizer: torch.optim.Optimizer, order: torch.Generator, count: int) -> None:
    for _ in range(count):
        chosen = torch.randperm(4, generator=order)[:2]
        images = torch.linspace(0, 1, 4 * 2 * 9).view(4, 2, 3, 3)[chosen]
        loss = (toy.norm(toy.conv(images + torch.rand(()))).square() * torch.rand(())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_goes_on_to_the_same_bits() -> None:
    def fresh() -> tuple[Toy, torch.optim.Optimizer, torch.Generator]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            toy = Toy()
        return toy, torch.optim.AdamW(toy.trainable().values()), torch.Generator().manual_seed(5)

    def state(toy: Toy) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in toy.state_dict().items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        whole = fresh()
        steps(*whole, 3)
        tensors = {n: t.clone() for n, t in training_tensors(*whole)}  # type: ignore[arg-type]
        steps(*whole, 3)
        torch.manual_seed(77)  # must not matter
        resumed = fresh()
        restore_training(tensors, *resumed)  # type: ignore[arg-type]
        steps(*resumed, 3)
    assert not any(name.startswith("network/encoder") for name in tensors)
    expected, found = state(whole[0]), state(resumed[0])
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    moment = resumed[1].state[resumed[0].conv.weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)
