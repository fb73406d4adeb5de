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
import math
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

from mambaadv2.data.dataset import image_batches, to_unit_range
from mambaadv2.errors import ConfigError, DataError

CacheMode = Literal["auto", "memory", "disk", "off"]
PREPROCESSING = "rgb8-bilinear-1"  # change it when `load_image` changes what it returns
MEMORY_SHARE, DISK_SHARE = 0.4, 0.5  # of what is free
FLOAT16_MAX = 65504.0

Encode = Callable[[Tensor], tuple[Tensor, ...]]
Tick = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Where features go and what that costs.

    mode: "memory", "disk" or "off"; bytes: for all images; reason: one sentence for people.
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
    """The same interface without a cache: reads and encodes the images at every call."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], encode: Encode) -> None:
        self.paths, self.size, self.encode = tuple(paths), size, encode

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """Features (B, C, h, w) float32 per scale of the images at `positions`."""
        chosen = [self.paths[i] for i in positions]
        images = next(image_batches(chosen, self.size, len(chosen)))
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
    disk = (shutil.disk_usage(folder).free + present) * DISK_SHARE
    memory = _free_memory() * MEMORY_SHARE
    size = f"{need / 1e6:.0f} MB for {images} images"
    if mode == "off":
        return CachePlan("off", 0, "feature cache off: the encoder runs at every step")
    if mode == "memory" or (mode == "auto" and need <= memory):
        if need > memory:
            raise ConfigError(f"cache: {size} exceed {memory / 1e6:.0f} MB, 40 % of free memory")
        return CachePlan("memory", need, f"feature cache in memory: {size}")
    if mode == "disk" or need <= disk:
        if need > disk:
            raise ConfigError(f"cache: {size} exceed {disk / 1e6:.0f} MB, half of the free disk")
        return CachePlan("disk", need, f"feature cache on disk: {size}")
    return CachePlan("off", 0, f"feature cache off: {size} fit neither in memory nor on disk")


def _free_memory() -> float:
    """Bytes that can be taken without swapping, a container's limit included."""
    return min(_free_memory_of_machine(), _free_memory_of_group())


def _free_memory_of_group() -> float:
    """What the control group (version 2) of a container leaves, infinite where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = float((group / "memory.current").read_text(encoding="ascii"))
        return math.inf if limit == "max" else max(0.0, float(limit) - used)
    except (OSError, ValueError):
        return math.inf


def _free_memory_of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def fingerprint(paths: Sequence[Path], *parts: str) -> str:
    """SHA-256 of the parts and of the content of every file, in order (hexadecimal).

    Raises `DataError` naming a file that cannot be read.
    """
    total = hashlib.sha256("\n".join((PREPROCESSING, *parts)).encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
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

    shapes: (C, h, w) of each scale. key: from `fingerprint`; a folder that holds it is used again.
    tick: called with the number of images done since the last call.
    """
    stored = _open_stored(folder, key, len(paths), shapes) if folder else None
    if stored is not None:
        tick(len(paths))
        return stored
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "features.json").unlink(missing_ok=True)
    arrays = [
        np.empty((len(paths), *shape), dtype=np.float16)
        if folder is None
        else np.lib.format.open_memmap(
            folder / f"scale_{i}.npy", mode="w+", dtype=np.float16, shape=(len(paths), *shape)
        )
        for i, shape in enumerate(shapes)
    ]
    start = 0
    for images, features in _encoded(paths, size, encode, batch_size):
        for array, feature in zip(arrays, features, strict=True):
            array[start : start + images] = _to_half(feature, paths[start])
        start += images
        tick(images)
    if folder is not None:
        for array in arrays:
            assert isinstance(array, np.memmap)
            array.flush()
        (folder / "features.json").write_text(json.dumps({"key": key}), encoding="utf-8")
    return FeatureStore(arrays)


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
        note = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        arrays = [
            np.load(folder / f"scale_{i}.npy", mmap_mode="r", allow_pickle=False)
            for i in range(len(shapes))
        ]
    except (OSError, ValueError):
        return None
    fits = [array.shape == (images, *s) for array, s in zip(arrays, shapes, strict=True)]
    return FeatureStore(arrays) if note == {"key": key} and all(fits) else None
