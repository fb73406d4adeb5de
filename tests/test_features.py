"""The feature cache: same numbers from memory, disk and no cache; used again only when it fits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2 import readers
from mambaadv2.data import dataset, features
from mambaadv2.data.dataset import image_batches, to_unit_range
from mambaadv2.data.features import (
    CacheMode,
    FeatureStore,
    ImageSource,
    fill_store,
    fingerprint,
    plan_cache,
    slices,
)
from mambaadv2.errors import ConfigError, DataError, ImageError, WorkerError
from mambaadv2.image import read_image, resize_image, write_png
from mambaadv2.readers import Readers

SIZE = (32, 64)
SHAPES = ((3, 4, 8), (6, 2, 4))


class Encoder:
    """Average pooling; counts the images that it saw."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype == torch.float32
        self.images += len(images)
        return F.avg_pool2d(images, 8) / 3, torch.cat([F.avg_pool2d(images, 16)] * 2, dim=1)


def load_image(path: Path) -> Tensor:
    """(3, height, width) uint8 at `SIZE`."""
    return torch.from_numpy(resize_image(read_image(path), SIZE)).permute(2, 0, 1)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file in files:
        write_png(file, rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return files


def fill(
    paths: list[Path],
    encoder: Encoder,
    *,
    folder: Path | None = None,
    key: str = "k",
    batch_size: int = 2,
) -> FeatureStore:
    return fill_store(paths, SIZE, encoder, SHAPES, folder=folder, key=key, batch_size=batch_size)


def assert_same(left: Iterable[Tensor], right: Iterable[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_memory_and_disk_agree_to_the_bit_and_no_cache_to_half_precision(
    paths: list[Path], tmp_path: Path
) -> None:
    memory = fill(paths, Encoder())
    disk = fill(paths, Encoder(), folder=tmp_path / "cache")
    direct = ImageSource(paths, SIZE, Encoder())
    assert len(memory) == len(disk) == len(direct) == 5
    for positions in ([0], [4, 1], [2, 2, 0]):
        assert_same(memory.batch(positions), disk.batch(positions))
        for half, full in zip(memory.batch(positions), direct.batch(positions), strict=True):
            assert half.shape == full.shape
            assert half.dtype == full.dtype == torch.float32
            torch.testing.assert_close(half, full, rtol=2**-10, atol=1e-6)


def test_features_come_in_the_order_of_the_files(paths: list[Path]) -> None:
    store = fill(paths, Encoder(), batch_size=4)
    for i, path in enumerate(paths):
        (expected, _) = Encoder()(to_unit_range(load_image(path).unsqueeze(0)))
        torch.testing.assert_close(store.batch([i])[0], expected, rtol=2**-10, atol=1e-6)


def test_progress_counts_images_also_when_the_cache_is_found(
    paths: list[Path], tmp_path: Path
) -> None:
    for expected in ([2, 2, 1], [5]):
        seen: list[int] = []
        fill_store(
            paths, SIZE, Encoder(), SHAPES,
            folder=tmp_path / "cache", key="k", batch_size=2, tick=seen.append,
        )  # fmt: skip
        assert seen == expected


def test_a_cache_on_disk_is_used_again_only_for_its_key(paths: list[Path], tmp_path: Path) -> None:
    encoder, folder = Encoder(), tmp_path / "cache"
    first = fill(paths, encoder, folder=folder)
    again = fill(paths, encoder, folder=folder)
    assert encoder.images == 5
    assert_same(first.batch([3, 0]), again.batch([3, 0]))
    fill(paths, encoder, folder=folder, key="other")
    assert encoder.images == 10


def test_a_cache_of_another_number_or_shape_is_not_used(paths: list[Path], tmp_path: Path) -> None:
    encoder, folder = Encoder(), tmp_path / "cache"
    fill(paths, encoder, folder=folder)
    assert len(fill(paths[:3], encoder, folder=folder)) == 3
    assert encoder.images == 8
    # Half of each feature map, under the same key.
    narrow = fill_store(
        paths[:3], (32, 32), encoder, [(c, h, w // 2) for c, h, w in SHAPES],
        folder=folder, key="k",
    )  # fmt: skip
    assert encoder.images == 11
    assert [tuple(f.shape[1:]) for f in narrow.batch([0])] == [(3, 4, 4), (6, 2, 2)]


@pytest.mark.parametrize("damage", ["truncated", "missing", "note", "not numpy"])
def test_a_damaged_cache_is_filled_anew(paths: list[Path], tmp_path: Path, damage: str) -> None:
    encoder, folder = Encoder(), tmp_path / "cache"
    first = [f.clone() for f in fill(paths, encoder, folder=folder).batch([0, 4])]
    file = folder / "scale_1.npy"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "missing":
        file.unlink()
    elif damage == "not numpy":
        file.write_bytes(b"nothing")
    else:
        (folder / "features.json").write_text("{", encoding="utf-8")
    assert_same(fill(paths, encoder, folder=folder).batch([0, 4]), first)
    assert encoder.images == 10


def test_an_interrupted_fill_is_not_taken_for_a_cache(paths: list[Path], tmp_path: Path) -> None:
    class Failing(Encoder):
        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            if self.images >= 2:
                raise KeyboardInterrupt
            return super().__call__(images)

    folder = tmp_path / "cache"
    fill(paths, Encoder(), folder=folder)
    with pytest.raises(KeyboardInterrupt):
        fill(paths, Failing(), folder=folder, key="new")
    for key in ("k", "new"):
        encoder = Encoder()
        fill(paths, encoder, folder=folder, key=key)
        assert encoder.images == 5


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mambaadv2.data import features

moment, folder, *paths = sys.argv[1:]
seen = 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def encode(images):
    global seen
    seen += len(images)
    if seen > int(moment):
        die()
    return torch.ones(len(images), 3, 4, 8), torch.ones(len(images), 6, 2, 4)

if moment == "9":
    features.write_atomically = die
shapes = [(3, 4, 8), (6, 2, 4)]
features.fill_store(
    [Path(p) for p in paths], (32, 64), encode, shapes, folder=Path(folder), key="k", batch_size=2
)
"""


@pytest.mark.parametrize("moment", [0, 4, 9], ids=["begin", "end", "note"])
def test_a_fill_that_was_killed_is_not_taken_for_a_cache(
    paths: list[Path], tmp_path: Path, moment: int
) -> None:
    folder = tmp_path / "cache"
    fill(paths, Encoder(), folder=folder, key="another")
    command = [sys.executable, "-c", KILLED, str(moment), str(folder), *map(str, paths)]
    assert subprocess.run(command, check=False).returncode == -9
    for key in ("k", "another"):
        encoder = Encoder()
        store = fill(paths, encoder, folder=folder, key=key)
        assert encoder.images == 5
        assert_same(store.batch([4, 0]), fill(paths, Encoder()).batch([4, 0]))


def test_the_note_follows_the_arrays_to_the_disk(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    fill(paths, Encoder(), folder=tmp_path / "cache")
    # The old note's end, the arrays, their names; then the note under another name, and its own.
    assert synced[:4] == ["cache", "scale_0.npy", "scale_1.npy", "cache"]
    assert synced[4].startswith(".features.json")
    assert synced[5:] == ["cache"]


def test_a_full_disk_is_found_before_anything_is_encoded(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    encoder = Encoder()
    with pytest.raises(ConfigError, match=r"cache \(No space left on device\)"):
        fill(paths, encoder, folder=tmp_path / "cache")
    assert encoder.images == 0


def test_a_killed_reader_stops_with_an_error_and_no_hang(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = readers._Process.ask

    def ask(self: readers._Process, kind: readers.Kind, path: Path, size: Any) -> Any:
        if path.name == "3.png":
            popen = self._started(path)
            popen.kill()
            popen.wait()
        return original(self, kind, path, size)

    monkeypatch.setattr(readers._Process, "ask", ask)
    for module in (dataset, features):
        monkeypatch.setattr(module, "readers_for", lambda _: 2)
    with pytest.raises(WorkerError, match=r"3\.png: the process that read this image was killed"):
        fill(paths, Encoder())
    source = ImageSource(paths, SIZE, Encoder())
    assert_same(source.batch([0, 4]), source.batch([0, 4]))
    with pytest.raises(WorkerError, match=r"3\.png"):
        source.batch([1, 3])
    source.close()


def test_without_a_cache_the_readers_stay(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    original = readers._Process._started

    def note(self: readers._Process, path: Path) -> subprocess.Popen[bytes]:
        popen = original(self, path)
        started.append(popen)
        return popen

    monkeypatch.setattr(readers._Process, "_started", note)
    monkeypatch.setattr(features, "readers_for", lambda _: 1)
    source = ImageSource(paths, SIZE, Encoder())
    for position in range(5):
        source.batch([position])
    assert len(started) == 5
    assert len({popen.pid for popen in started}) == 1
    source.close()
    assert started[0].returncode is not None


def test_values_beyond_half_precision_stay_finite(paths: list[Path]) -> None:
    class Loud(Encoder):
        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            first, second = super().__call__(images)
            return first * 1e9, second * -1e9

    first, second = fill(paths, Loud()).batch([0])
    assert float(first.max()) == 65504.0
    assert float(second.min()) == -65504.0


def test_features_that_are_not_finite_name_the_file(paths: list[Path]) -> None:
    class Broken(Encoder):
        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            first, second = super().__call__(images)
            return (first * (torch.nan if self.images > 2 else 1), second)

    with pytest.raises(DataError, match=r"2\.png: the encoder gives features that are not finite"):
        fill(paths, Broken())


def test_slices_count_from_their_own_start(paths: list[Path]) -> None:
    store = fill(paths, Encoder())
    parts = slices(store, [2, 1, 2])
    assert [len(part) for part in parts] == [2, 1, 2]
    assert_same(parts[1].batch([0]), store.batch([2]))
    assert_same(parts[2].batch([1, 0]), store.batch([4, 3]))


def test_fingerprint_is_of_contents_in_order(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fingerprint(paths)
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / f"new{path.name}") for path in paths]
    assert fingerprint(moved) == base
    assert fingerprint(moved[::-1]) != base
    assert fingerprint(moved[:-1]) != base
    assert fingerprint(moved, "lite0") != base
    moved[2].write_bytes(moved[2].read_bytes() + b"\0")
    changed = fingerprint(moved)
    assert changed != base
    monkeypatch.setattr(features, "PREPROCESSING", "another")
    assert fingerprint(moved) != changed


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    link = tmp_path / "gone.png"
    link.symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        fingerprint([link])


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 MB of free memory and 1000 MB of free disk."""
    monkeypatch.setattr(features, "free_memory", lambda: 100e6)
    monkeypatch.setattr(
        features, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000e6))
    )


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    "mode, megabytes, chosen, reason",
    [
        ("auto", 40, "memory", "feature cache in memory: 40 MB for 10 images"),
        ("auto", 42, "disk", "feature cache on disk: 42 MB for 10 images"),
        ("auto", 502, "off", "502 MB for 10 images fit neither in memory nor on disk"),
        ("memory", 10, "memory", "in memory: 10 MB"),
        ("disk", 10, "disk", "on disk: 10 MB"),
        ("off", 10, "off", "the encoder runs at every step"),
    ],
)
def test_the_cache_goes_where_there_is_room(
    tmp_path: Path, mode: CacheMode, megabytes: int, chosen: str, reason: str
) -> None:
    plan = plan_cache(mode, 10, megabytes * 1_000_000 // 20, tmp_path)
    assert plan.mode == chosen
    assert plan.bytes == (0 if chosen == "off" else megabytes * 1_000_000)
    assert reason in plan.reason


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    "mode, megabytes, message",
    [
        ("memory", 42, "cache: 42 MB for 10 images exceed 40 MB, 40 % of free memory"),
        ("disk", 502, "cache: 502 MB for 10 images exceed 500 MB, half of the free disk"),
    ],
)
def test_a_mode_asked_for_by_name_that_does_not_fit_is_refused(
    tmp_path: Path, mode: CacheMode, megabytes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_cache(mode, 10, megabytes * 1_000_000 // 20, tmp_path)


def test_more_than_this_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="free memory"):
        plan_cache("memory", 10**9, 10**9, tmp_path)


def test_batches_are_complete_and_in_order(paths: list[Path]) -> None:
    batches = list(image_batches(paths, SIZE, 2))
    assert [tuple(b.shape) for b in batches] == [(2, 3, 32, 64), (2, 3, 32, 64), (1, 3, 32, 64)]
    assert all(b.dtype == torch.uint8 for b in batches)
    assert torch.equal(torch.cat(batches), torch.stack([load_image(p) for p in paths]))
    assert list(image_batches([], SIZE, 2)) == []


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    write_png(tmp_path / "x.png", pixels)
    ((loaded,),) = image_batches([tmp_path / "x.png"], SIZE, 1)
    assert np.array_equal(loaded.permute(1, 2, 0).numpy(), pixels)
    unit = to_unit_range(loaded)
    assert torch.equal((unit * 255).round().to(torch.uint8), loaded)
    assert 0 <= float(unit.min()) <= float(unit.max()) <= 1


def test_one_batch_is_read_ahead(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    original = Readers.image

    def counting(self: Readers, path: Path, size: tuple[int, int]) -> Future[NDArray[np.uint8]]:
        nonlocal asked
        asked += 1
        return original(self, path, size)

    monkeypatch.setattr(Readers, "image", counting)
    files = paths * 8
    for number, _ in enumerate(image_batches(files, SIZE, 4), start=1):
        assert 4 * number <= asked <= 4 * (number + 1)
    assert asked == len(files)


def test_an_unreadable_image_is_named(paths: list[Path]) -> None:
    paths[3].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"3\.png"):
        list(image_batches(paths, SIZE, 2))
    with pytest.raises(ImageError, match=r"3\.png"):
        fill(paths, Encoder())
