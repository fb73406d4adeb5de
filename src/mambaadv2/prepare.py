"""Before the first step: which images to learn from, their features, the network's start."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mambaadv2.checkpoint import make_scorer
from mambaadv2.data.features import (
    PREPROCESSING,
    CachePlan,
    ImageSource,
    Source,
    SourceSlice,
    fill_store,
    plan_cache,
)
from mambaadv2.data.record import Record
from mambaadv2.errors import ConfigError, Problem, TrainingInterruptedError
from mambaadv2.files import file_sha256
from mambaadv2.fit import TrainConfig
from mambaadv2.heldout import fit_on_heldout
from mambaadv2.model.config import ModelConfig
from mambaadv2.model.network import Network, pca_start, set_feature_scale
from mambaadv2.runlog import RunLog
from mambaadv2.signals import StopRequest
from mambaadv2.snapshot import KEPT

START_IMAGES = 64  # behind the feature scale and the PCA start


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one class: to learn from, and held out."""

    learn: tuple[Path, ...]
    held: tuple[Path, ...]


def split_records(records: Sequence[Record], config: TrainConfig) -> dict[str, Part]:
    """Every class's files in two parts, classes and files in the order of the records."""
    paths: dict[str, list[Path]] = {}
    for record in records:
        paths.setdefault(record.class_name, []).append(record.path)
    return {name: split_class(files, config) for name, files in paths.items()}


def split_class(paths: Sequence[Path], config: TrainConfig) -> Part:
    """Hold out a share of a class's images, the same ones for the same seed and number of files.

    A class of one image is used for both; its threshold then says little, and the card shows it.
    """
    count = len(paths)
    if count == 1:
        return Part(learn=tuple(paths), held=tuple(paths))
    least = min(config.holdout_least, count // 3)
    held = max(1, least, round(config.holdout * count))
    generator = torch.Generator().manual_seed(config.seed)
    chosen = set(torch.randperm(count, generator=generator)[: min(held, count - 1)].tolist())
    return Part(
        learn=tuple(p for i, p in enumerate(paths) if i not in chosen),
        held=tuple(p for i, p in enumerate(paths) if i in chosen),
    )


def learn_files(parts: Mapping[str, Part]) -> list[Path]:
    """Files to learn from, class after class."""
    return [path for part in parts.values() for path in part.learn]


def held_files(parts: Mapping[str, Part]) -> list[Path]:
    """Held-out files, class after class."""
    return [path for part in parts.values() for path in part.held]


def require_batch(parts: Mapping[str, Part], model: ModelConfig, config: TrainConfig) -> None:
    """BatchNorm needs two values per channel; the neck's last maps are H/32 x W/32."""
    images = min(config.batch_size, len(learn_files(parts)))
    if images * (model.image_size[0] // 32) * (model.image_size[1] // 32) < 2:
        raise ConfigError(
            "batch_size, image_size: one image of 32 x 32 pixels per step leaves BatchNorm a "
            "single value; give more images, a larger batch or a larger size"
        )


@dataclass(frozen=True, slots=True)
class DataRecord:
    """What a run was trained on, for data.json.

    learn, held: class name to {file, relative to the data set: SHA-256 of its content}, in order.
    skipped: files that were left out, and why.
    """

    learn: Mapping[str, Mapping[str, str]]
    held: Mapping[str, Mapping[str, str]]
    skipped: Sequence[Mapping[str, str]]

    def fingerprint(self) -> str:
        """SHA-256 over the preprocessing and the content of every file, in order (hexadecimal)."""
        total = hashlib.sha256(PREPROCESSING.encode())
        for files in (*self.learn.values(), *self.held.values()):
            for digest in files.values():
                total.update(bytes.fromhex(digest))
        return total.hexdigest()


def record_data(
    data: Path, parts: Mapping[str, Part], skipped: Sequence[Problem], stop: StopRequest
) -> DataRecord:
    """Read every file once, for its hash. Raises `DataError` naming one that cannot be read."""
    root = data if data.is_dir() else data.parent

    def hashes(paths: Sequence[Path]) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in paths:
            require_going(stop)
            found[os.path.relpath(path, root)] = file_sha256(path).hex()
        return found

    return DataRecord(
        learn={name: hashes(part.learn) for name, part in parts.items()},
        held={name: hashes(part.held) for name, part in parts.items()},
        skipped=[
            {"path": os.path.relpath(p.path, root), "error": p.message.replace(f"{root}/", "")}
            for p in skipped
        ],
    )


def require_going(stop: StopRequest) -> None:
    """Raise `TrainingInterruptedError` when asked to stop, where there is nothing to save."""
    if stop.signal is not None:
        raise TrainingInterruptedError(
            f"stopped by {stop.name}; no step was lost: the same command with --resume goes on",
            stop.signal,
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """Features of the images to learn from and of the held-out ones."""

    learn: Source
    held: Source


def plan_features(
    network: Network, parts: Mapping[str, Part], config: TrainConfig, folder: Path
) -> tuple[CachePlan, list[tuple[int, int, int]]]:
    """Where the features will be kept, and their shapes (C, h, w) by scale."""
    device, size = network.feature_scale.device, network.config.image_size
    maps = network.features(torch.zeros(1, 3, *size, device=device))
    shapes = [(f.shape[1], f.shape[2], f.shape[3]) for f in maps]
    values = sum(c * h * w for c, h, w in shapes)
    images = len(learn_files(parts)) + len(held_files(parts))
    return plan_cache(config.cache, images, values, folder), shapes


def require_space(folder: Path, network: Network, plan: CachePlan) -> None:
    """Refuse a disk that has no room for the model, its snapshots and a cache on disk."""
    model = sum(t.nbytes for t in network.state_dict().values())
    state = 3 * sum(p.nbytes for p in network.trainable().values())  # weights and two moments
    need = model + (KEPT + 1) * state + (plan.bytes if plan.mode == "disk" else 0)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ConfigError(
            f"out: {folder} has {free / 1e6:.0f} MB free, this run needs about {need / 1e6:.0f} MB "
            "for the model, its snapshots and features on disk; free some space or choose another "
            "folder"
        )


def encode_files(
    network: Network,
    parts: Mapping[str, Part],
    plan: CachePlan,
    shapes: Sequence[tuple[int, int, int]],
    fingerprint: str,
    folder: Path,
    log: RunLog,
    stop: StopRequest,
) -> Sources:
    """Send every image through the encoder once, or open what an earlier call left on disk."""
    device, size = network.feature_scale.device, network.config.image_size
    learn, held = learn_files(parts), held_files(parts)

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return network.features(images.to(device))

    if plan.mode == "off":
        return Sources(ImageSource(learn, size, encode), ImageSource(held, size, encode))
    provenance = network.encoder.provenance
    mean, std = (b.flatten().tolist() for b in (network.encoder.mean, network.encoder.std))
    encoder = f"{provenance.name} {provenance.sha256} {mean} {std} timm {version('timm')}"
    key = f"{fingerprint} {encoder} {size}"
    stores: list[Source] = []
    with log.bar(len(learn) + len(held), "features") as advance:

        def tick(images: int) -> None:
            require_going(stop)
            advance(images)

        for name, files in (("learn", learn), ("held", held)):
            target = folder / "features" / name if plan.mode == "disk" else None
            stores.append(
                fill_store(files, size, encode, shapes, folder=target, key=key, tick=tick)
            )
    return Sources(stores[0], stores[1])


def set_start(network: Network, learn: Source, config: TrainConfig) -> None:
    """Feature scale and PCA start from images drawn evenly over the whole list."""
    count = min(START_IMAGES, len(learn))
    positions = [i * len(learn) // count for i in range(count)]
    device = network.feature_scale.device
    features = tuple(f.to(device) for f in learn.batch(positions))
    set_feature_scale(network, features)
    if config.pca_start:
        pca_start(network, features)


def calibration_seconds(network: Network, learn: Source, held: Source) -> float:
    """Seconds that calibration will take: a rehearsal on one image, scaled up."""
    scorer = make_scorer(network.config, network, 1).to(network.feature_scale.device)
    seconds: list[float] = []
    for _ in range(3):  # the first time anything runs it is slow
        start = time.monotonic()
        learn.batch([0])
        encoded = time.monotonic()
        fit_on_heldout(
            network, scorer, {"": SourceSlice(held, 0, 1)}, {"": SourceSlice(learn, 0, 1)}
        )
        seconds.append((encoded - start) * len(learn) + (time.monotonic() - encoded) * len(held))
    return min(seconds)
