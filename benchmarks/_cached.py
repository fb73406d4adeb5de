"""Encoder features of a whole data set in memory, and the metrics of networks that use them.

For comparing many trainings: the encoder sees every image once, and no file is read again. Metrics,
sizes of maps and rules are those of `mambaadv2.evaluate`; the only difference is that features of
test images, too, are kept as float16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2.data.features import FeatureStore, Source, fill_store, fingerprint
from mambaadv2.data.index import Record, mvtec_records
from mambaadv2.errors import DataError
from mambaadv2.evaluate import ClassResult, Evaluation, class_metrics
from mambaadv2.image import read_image, read_mask, resize_map
from mambaadv2.model.network import Network
from mambaadv2.model.scoring import Scorer

BATCH = 16

Mask = NDArray[np.bool_]


class Picked:
    """Some positions of a source, renumbered from 0."""

    def __init__(self, source: Source, positions: Sequence[int]) -> None:
        self.source, self.positions = source, tuple(positions)

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, positions: Sequence[int]) -> tuple[Tensor, ...]:
        """As the source's."""
        return self.source.batch([self.positions[i] for i in positions])


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedData:
    """A data set as features: what training and evaluation need, without its files."""

    train_paths: Mapping[str, tuple[Path, ...]]
    """By class, in the order of `train`."""
    train: FeatureStore
    test: Mapping[str, tuple[Record, ...]]
    """By class, in the order of `test_features`."""
    test_features: FeatureStore
    masks: Mapping[str, tuple[Mask, ...] | None]
    """By class, in the size of the images; None for classes without ground truth."""
    data_sha256: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the training images."""
        return tuple(self.train_paths)


def cache(data: Path, network: Network, tick: Callable[[int], None] = lambda _: None) -> CachedData:
    """Encode all training and test images; `tick` is called with the number of images done.

    network: any with the encoder and the sizes of those that will use the features.
    """
    train = _by_class(mvtec_records(data, split="train"))
    test = _by_class(mvtec_records(data, split="test", classes=tuple(train)))
    device, size = network.feature_scale.device, network.config.image_size

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return network.features(images.to(device))

    shapes = [
        (channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(network.channels, reversed(network.config.strides), strict=True)
    ]
    paths = [[r.path for members in part.values() for r in members] for part in (train, test)]
    stores = [
        fill_store(files, size, encode, shapes, folder=None, key="", tick=tick) for files in paths
    ]
    return CachedData(
        train_paths={name: tuple(r.path for r in members) for name, members in train.items()},
        train=stores[0],
        test=test,
        test_features=stores[1],
        masks={name: _masks(members) for name, members in test.items()},
        data_sha256=fingerprint([path for files in paths for path in files]),
    )


def _by_class(records: Sequence[Record]) -> dict[str, tuple[Record, ...]]:
    return {name: tuple(members) for name, members in groupby(records, key=lambda r: r.class_name)}


def _masks(records: Sequence[Record]) -> tuple[Mask, ...] | None:
    if any(record.defect and record.mask is None for record in records):
        return None
    masks: list[Mask] = []
    for record in records:
        image = read_image(record.path)
        mask = (
            np.zeros(image.shape[:2], np.bool_) if record.mask is None else read_mask(record.mask)
        )
        if mask.shape != image.shape[:2]:
            raise DataError(f"{record.mask}: expected {image.shape[:2]}, found {mask.shape}")
        masks.append(mask)
    return tuple(masks)


@torch.inference_mode()
def evaluate_cached(
    network: Network, scorers: Mapping[str, Scorer], data: CachedData
) -> dict[str, Evaluation]:
    """Metrics of one network under several scores, by the scorers' names.

    The first scorer finds the class; all must list the classes in the order of `data.classes`.
    """
    start = time.perf_counter()
    finder = next(iter(scorers.values()))
    device = network.feature_scale.device
    results: dict[str, dict[str, ClassResult]] = {name: {} for name in scorers}
    first = 0
    for class_name, records in data.test.items():
        maps: dict[str, list[NDArray[np.float32]]] = {name: [] for name in scorers}
        for offset in range(0, len(records), BATCH):
            count = min(BATCH, len(records) - offset)
            positions = range(first + offset, first + offset + count)
            raw = tuple(f.to(device) for f in data.test_features.batch(positions))
            classes, scaled = finder.find_class(raw), network.scaled(raw)
            rebuilt = network.reconstruct(scaled)
            for name, scorer in scorers.items():
                maps[name].extend(scorer(scaled, rebuilt, classes).cpu().numpy())
        first += len(records)
        labels = np.array([record.defect for record in records])
        masks = data.masks[class_name]
        for name, values in maps.items():
            scores = np.array([float(found.max()) for found in values])
            resized = [] if masks is None else _resized(values, masks)
            results[name][class_name] = class_metrics(labels, scores, masks, resized)
    seconds = time.perf_counter() - start
    return {name: Evaluation(classes=found, seconds=seconds) for name, found in results.items()}


def _resized(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[Mask]
) -> list[NDArray[np.float32]]:
    """Maps in the size of their masks, which is that of the images."""
    return [
        resize_map(values, (mask.shape[0], mask.shape[1]))
        for values, mask in zip(maps, masks, strict=True)
    ]
