"""Anomaly maps to measure metrics on: of real images by a nearest-neighbour memory, and made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.memory import MemoryConfig, MemoryPredictor, PatchEncoder, remember
from mambaadv2.data.index import mvtec_records
from mambaadv2.image import read_mask
from mambaadv2.model.encoder import build_encoder
from mambaadv2.predict import predict_paths

Images = tuple[list[NDArray[np.bool_]], list[NDArray[np.float32]]]

TRAIN_IMAGES, PATCHES = 40, 3000  # a stand-in for a model; its quality is not the matter


def real_maps(data: Path, name: str, *, most: int | None = None) -> Images:
    """Masks and maps of the test images of one class, each of its image's size, in order.

    most: of the images, evenly chosen.
    """
    config = MemoryConfig(patches=PATCHES)
    encoder = build_encoder(config.encoder, image_size=config.image_size)
    patches = PatchEncoder(encoder, config.strides, config.image_size)
    train = [record.path for record in mvtec_records(data, split="train", classes=[name])]
    memory = remember(patches, train[:TRAIN_IMAGES], config.patches, config.seed)
    model = MemoryPredictor(patches, memory, [name])
    records = mvtec_records(data, split="test", classes=[name])
    records = records[:: max(1, len(records) // most)] if most else records
    masks, maps = [], []
    found = predict_paths(model, [record.path for record in records])
    for record, (_, rgb, prediction, _) in zip(records, found, strict=True):
        good = np.zeros(rgb.shape[:2], dtype=np.bool_)
        masks.append(good if record.mask is None else read_mask(record.mask))
        maps.append(prediction.map.astype(np.float32))
    return masks, maps


def made_maps(count: int, size: int = 256, *, seed: int = 0) -> Images:
    """Smooth, skewed maps, every other one with one to three defects that glow more or less."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for at in range(count):
        mask = np.zeros((size, size), dtype=np.bool_)
        for _ in range(at % 2 * int(rng.integers(1, 4))):
            y, x = rng.integers(0, size * 3 // 4, 2)
            h, w = rng.integers(3, size // 4, 2)
            mask[y : y + h, x : x + w] = True
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 4) * 8
        glow = ndimage.gaussian_filter(mask.astype(np.float64), 6) * rng.uniform(0, 3)
        masks.append(mask)
        maps.append(np.exp(0.5 * noise + glow).astype(np.float32))
    return masks, maps


def hot(images: Images) -> Images:
    """One good pixel 20 times hotter than all others: a fixed number of even thresholds fails."""
    masks, maps = images
    changed = [scores.copy() for scores in maps]
    at = next(at for at, mask in enumerate(masks) if not mask.any())
    changed[at][0, 0] = 20 * max(float(scores.max()) for scores in maps)
    return masks, changed


def narrow(images: Images) -> Images:
    """Squeezed to some thousandths around 1000, where float32 itself has few values left."""
    masks, maps = images
    top = max(float(scores.max()) for scores in maps)
    return masks, [(1000 + scores.astype(np.float64) / top).astype(np.float32) for scores in maps]


MADE: dict[str, Callable[[Images], Images]] = {"one hot pixel": hot, "narrow": narrow}


def write(images: Images, folder: Path) -> None:
    """As `_metric_contenders` reads them; all of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    masks, maps = images
    np.save(folder / "masks.npy", np.stack(masks), allow_pickle=False)
    np.save(folder / "maps.npy", np.stack(maps), allow_pickle=False)
