"""The feature cache: a frozen encoder without augmentation needs to see each image only once.

Features are kept as float16, in memory or as memory-mapped `.npy` files. A cache on disk is found
again by its key: encoder weights, image size, version of the preprocessing, and the content of
every file, in order. A run without a cache rounds its features alike, so whether one fits changes
nothing but the time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2.data.dataset import image_batches, stacked, to_unit_range
from mambaadv2.errors import ConfigError, DataError
from mambaadv2.files import file_sha256, sync_folder, write_atomically, writing_to
from mambaadv2.memory import free_memory
from mambaadv2.readers import Readers, readers_for

CacheMode = Literal["auto", "memory", "disk", "off"]
PREPROCESSING = "rgb8-bilinear-1"  # change it when `image_batches` gives other pixels
MEMORY_SHARE, DISK_SHARE = 0.4, 0.5  # of what is free
FLOAT16_MAX = 65504.0
NOTE = "features.json"  # in a cache on disk: written last, so that it stands for a full one

Encode = Callable[[Tensor], tuple[Tensor, ...]]
Tick = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Where features go and what that costs.

    mode: "memory", "disk" or "off"; bytes: of memory, or of disk that is still to be written;
    reason: one sentence for people.
    """

    mode: Literal["memory", "disk", "off"]
    bytes: int
    reason: str


class Source(Protocol):
    """Features by position, wherever they come from."""

    def __len__(self) -> int: ...

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """Features (B, C, h, w) float32 per scale, shallow to deep, at `positions`."""
        ...


class SourceSlice:
    """A run of consecutive positions of a source, counted from 0."""

    def __init__(self, source: Source, start: int, length: int) -> None:
        self.source, self.start, self.length = source, start, length

    def __len__(self) -> int:
        return self.length

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """As the source's, with positions counted from the slice's start."""
        return self.source.batch([self.start + p for p in positions])


def slices(source: Source, lengths: Sequence[int]) -> list[SourceSlice]:
    """Cut a source into consecutive parts of these lengths."""
    starts = itertools.accumulate(lengths, initial=0)
    return [SourceSlice(source, start, n) for start, n in zip(starts, lengths, strict=False)]


class FeatureStore:
    """Features of a fixed list of images by position; float16 arrays (N, C, h, w) per scale."""

    def __init__(self, arrays: Sequence[NDArray[np.float16]]) -> None:
        self.arrays = tuple(arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """Features (B, C, h, w) float32 per scale of the images at `positions`."""
        index = np.asarray(positions, dtype=np.int64)
        return tuple(torch.from_numpy(array[index].astype(np.float32)) for array in self.arrays)


class ImageSource:
    """The same interface without a cache: reads and encodes the images at every call.

    Its readers stay until it is forgotten or `close` is called.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], encode: Encode) -> None:
        self.paths, self.size, self.encode = tuple(paths), size, encode
        self._readers = Readers(readers_for(len(self.paths)))
        self.close = self._readers.close

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """Features (B, C, h, w) float32 per scale of the images at `positions`."""
        chosen = [self.paths[i] for i in positions]
        images = stacked([self._readers.image(path, self.size) for path in chosen])
        features = self.encode(to_unit_range(images))
        # Through float16 as in a cache: whether one fits must not change a run.
        return tuple(torch.from_numpy(_to_half(f, chosen[0]).astype(np.float32)) for f in features)


def plan_cache(mode: CacheMode, images: int, values_per_image: int, folder: Path) -> CachePlan:
    """Decide where the features of `images` images go; `folder` is where "disk" would write.

    Raises `ConfigError` when a mode asked for by name does not fit.
    """
    need = images * values_per_image * 2
    # A cache that is there already takes no further space.
    present = sum(file.stat().st_size for file in folder.glob("features/*/*.npy"))
    missing = max(0, need - present)
    disk = shutil.disk_usage(folder).free * DISK_SHARE
    memory = free_memory() * MEMORY_SHARE
    size = f"{need / 1e6:.0f} MB for {images} images"
    if mode == "off":
        return CachePlan("off", 0, "feature cache off: the encoder runs at every step")
    if mode == "memory" or (mode == "auto" and need <= memory):
        if need > memory:
            raise ConfigError(f"cache: {size} exceed {memory / 1e6:.0f} MB, 40 % of free memory")
        return CachePlan("memory", need, f"feature cache in memory: {size}")
    if mode == "disk" or missing <= disk:
        if missing > disk:
            raise ConfigError(f"cache: {size} exceed {disk / 1e6:.0f} MB, half of the free disk")
        return CachePlan("disk", missing, f"feature cache on disk: {size}")
    return CachePlan("off", 0, f"feature cache off: {size} fit neither in memory nor on disk")


def fingerprint(paths: Sequence[Path], *parts: str) -> str:
    """SHA-256 of the parts and of the content of every file, in order (hexadecimal).

    Raises `DataError` naming a file that cannot be read.
    """
    total = hashlib.sha256("\n".join((PREPROCESSING, *parts)).encode())
    for path in paths:
        total.update(file_sha256(path))
    return total.hexdigest()


def fill_store(
    paths: Sequence[Path],
    size: tuple[int, int],
    encode: Encode,
    shapes: Sequence[tuple[int, int, int]],
    *,
    folder: Path | None,
    key: str,
    batch_size: int = 16,
    tick: Tick = lambda _: None,
) -> FeatureStore:
    """Encode every image once; in memory, or in `folder` when it is given.

    shapes: (C, h, w) of each scale. key: what the features depend on; a folder that holds it is
    used again. tick: called with the number of images done since the last call.
    """
    stored = _open_stored(folder, key, len(paths), shapes) if folder else None
    if stored is not None:
        tick(len(paths))
        return stored
    arrays = (
        [np.empty((len(paths), *shape), dtype=np.float16) for shape in shapes]
        if folder is None
        else _new_arrays(folder, len(paths), shapes)
    )
    start = 0
    for images, features in _encoded(paths, size, encode, batch_size):
        for array, feature in zip(arrays, features, strict=True):
            array[start : start + images] = _to_half(feature, paths[start])
        start += images
        tick(images)
    if folder is not None:
        _finish(folder, arrays, key)
    return FeatureStore(arrays)


def _new_arrays(
    folder: Path, images: int, shapes: Sequence[tuple[int, int, int]]
) -> list[NDArray[np.float16]]:
    """Memory-mapped files with all their space, and no note that says they are filled."""
    arrays: list[NDArray[np.float16]] = []
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).unlink(missing_ok=True)
        sync_folder(folder)
        for i, shape in enumerate(shapes):
            path = folder / f"scale_{i}.npy"
            array = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float16, shape=(images, *shape)
            )
            # Writing to a mapped file on a full disk ends the process without a word.
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            arrays.append(array)
    return arrays


def _finish(folder: Path, arrays: Sequence[NDArray[np.float16]], key: str) -> None:
    """Bring the arrays to the disk and then, last, the note that says so."""
    with writing_to(folder):
        for i, array in enumerate(arrays):
            assert isinstance(array, np.memmap)
            array.flush()
            with (folder / f"scale_{i}.npy").open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(folder)
        write_atomically(folder / NOTE, json.dumps({"key": key}).encode())


def _encoded(
    paths: Sequence[Path], size: tuple[int, int], encode: Encode, batch_size: int
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    for images in image_batches(paths, size, batch_size):
        yield len(images), encode(to_unit_range(images))


def _to_half(feature: Tensor, path: Path) -> NDArray[np.float16]:
    values = feature.float().cpu()
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"{path}: the encoder gives features that are not finite, here or just after"
        )
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).numpy().astype(np.float16)


def _open_stored(
    folder: Path, key: str, images: int, shapes: Sequence[tuple[int, int, int]]
) -> FeatureStore | None:
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        arrays = [
            np.lib.format.open_memmap(folder / f"scale_{i}.npy", mode="r")
            for i in range(len(shapes))
        ]
    except (OSError, ValueError):
        return None
    fits = [array.shape == (images, *s) for array, s in zip(arrays, shapes, strict=True)]
    return FeatureStore(arrays) if note == {"key": key} and all(fits) else None
