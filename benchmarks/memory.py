"""Baseline: distance to the nearest of many remembered patches (the idea of PatchCore, CVPR 2022).

    scripts/bench memory

A patch is a cell of the encoder's map at stride 8: the maps at strides 8 and 16, each averaged over
3 x 3 cells, the deeper one resized to the finer grid, joined along the channels. The memory holds
random patches of normal images; PatchCore picks a core set, which this is not, and another seed
gives another number. An anomaly map is the distance to the nearest remembered patch, resized to the
image and smoothed like ours; the image score is its maximum. Encoder, preprocessing and metrics are
the model's own.

Two memories are measured. "all classes": one memory for everything, the task the model solves.
"per class": a memory for each class, which is told the class of every test image; that is generous.
Both may remember every normal image, of which the model holds a tenth out.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._context import DATA_HELP, find_data, integers
from mambaadv2.data.dataset import image_batches, to_unit_range
from mambaadv2.data.index import mvtec_records
from mambaadv2.device import DEVICES, choose_device
from mambaadv2.errors import ConfigError, MambaADv2Error
from mambaadv2.evaluate import ClassResult, Evaluation, evaluate
from mambaadv2.image import resize_image, resize_map
from mambaadv2.model.encoder import FrozenEncoder, build_encoder
from mambaadv2.model.scoring import gaussian_smooth
from mambaadv2.predict import Prediction

BATCH = 8
QUERY_CHUNK, MEMORY_CHUNK = 2048, 8192  # 64 MB of distances at a time
SIGMA = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """How patches are made and how many are kept."""

    encoder: str = "tf_efficientnet_lite0"
    image_size: tuple[int, int] = (256, 256)
    strides: tuple[int, ...] = (8, 16)
    """Of the encoder's maps that are joined, fine to coarse."""
    patches: int = 12_000
    """Per class, or all there are."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patches < 1:
            raise ConfigError(f"patches: expected at least 1, got {self.patches}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """Both baselines, measured by `mambaadv2.evaluate`."""

    all_classes: Evaluation
    per_class: Evaluation
    patches: Mapping[str, int]
    """Remembered, by class."""
    fill_seconds: float


class PatchEncoder:
    """Images to patches: (B, 3, H, W) uint8 to (B, h, w, C) float32 at the finest stride."""

    def __init__(
        self, encoder: FrozenEncoder, strides: Sequence[int], size: tuple[int, int]
    ) -> None:
        unknown = set(strides) - set(encoder.strides)
        if unknown or not strides:
            raise ConfigError(f"strides: expected some of {encoder.strides}, got {tuple(strides)}")
        self.encoder, self.size = encoder, size
        self.device = encoder.mean.device
        self.levels = [encoder.strides.index(stride) for stride in sorted(strides)]
        self.grid = (size[0] // min(strides), size[1] // min(strides))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        maps = self.encoder(to_unit_range(images.to(self.device)))
        pooled = [F.avg_pool2d(maps[level].float(), 3, 1, 1) for level in self.levels]
        joined = [
            F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False) for x in pooled
        ]
        return torch.cat(joined, dim=1).permute(0, 2, 3, 1)


def remember(encoder: PatchEncoder, paths: Sequence[Path], patches: int, seed: int) -> Tensor:
    """Random patches (n, C) of the images, `patches` of them or all; a seed repeats the choice."""
    cells = encoder.grid[0] * encoder.grid[1]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(paths) * cells, generator=generator)[:patches].sort().values
    kept: list[Tensor] = []
    start = 0
    for images in image_batches(paths, encoder.size, BATCH):
        end = start + len(images) * cells
        inside = chosen[(chosen >= start) & (chosen < end)] - start
        kept.append(encoder(images).flatten(0, 2)[inside.to(encoder.device)])
        start = end
    return torch.cat(kept)


@torch.inference_mode()
def nearest_distance(queries: Tensor, memory: Tensor) -> Tensor:
    """Euclidean distance (N,) of each query (N, C) to the nearest row of the memory (M, C)."""
    norms = memory.square().sum(dim=1)
    found: list[Tensor] = []
    for part in queries.split(QUERY_CHUNK):
        # |q - m|^2 = |q|^2 + (|m|^2 - 2 q m): only the bracket depends on the memory.
        least = torch.full((len(part),), math.inf, device=part.device)
        for rows, squares in zip(
            memory.split(MEMORY_CHUNK), norms.split(MEMORY_CHUNK), strict=True
        ):
            least = torch.minimum(least, torch.addmm(squares, part, rows.T, alpha=-2).amin(dim=1))
        found.append((least + part.square().sum(dim=1)).clamp(min=0).sqrt())
    return torch.cat(found)


class MemoryPredictor:
    """A memory as a `mambaadv2.predict.ImageModel`, so that `evaluate` measures it.

    It has no threshold, so it never calls an image a defect, and it names no class.
    """

    def __init__(self, encoder: PatchEncoder, memory: Tensor, classes: Sequence[str]) -> None:
        self.encoder, self.memory, self.classes = encoder, memory, tuple(classes)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predict a batch of (H, W, 3) uint8 RGB images of any sizes."""
        if not images:
            return []
        resized = np.stack([resize_image(image, self.encoder.size) for image in images])
        maps = self.maps(torch.from_numpy(resized).permute(0, 3, 1, 2)).cpu().numpy()
        return [
            Prediction(
                map=resize_map(values, image.shape[:2]),
                score=float(values.max()),
                threshold=math.inf,
                defect=False,
                class_name="",
            )
            for values, image in zip(maps, images, strict=True)
        ]

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Smoothed distances (B, H, W) of (B, 3, H, W) uint8 images."""
        patches = self.encoder(images)
        b, h, w, _ = patches.shape
        distances = nearest_distance(patches.flatten(0, 2), self.memory).view(b, 1, h, w)
        resized = F.interpolate(
            distances, size=self.encoder.size, mode="bilinear", align_corners=False
        )
        return gaussian_smooth(resized, SIGMA).squeeze(1)


def measure(
    data: Path,
    config: MemoryConfig,
    *,
    device: str = "auto",
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> MemoryResult:
    """Fill a memory per class, then evaluate each alone and all of them as one."""
    start = time.perf_counter()
    encoder = build_encoder(config.encoder, image_size=config.image_size).to(choose_device(device))
    patches = PatchEncoder(encoder, config.strides, config.image_size)
    paths: dict[str, list[Path]] = {}
    for record in mvtec_records(data, split="train", classes=classes):
        paths.setdefault(record.class_name, []).append(record.path)
    memories = {
        name: remember(patches, files, config.patches, config.seed) for name, files in paths.items()
    }
    filled = time.perf_counter()
    single: dict[str, ClassResult] = {}
    for name, memory in memories.items():
        single |= _evaluate(patches, memory, [name], data, [name], progress).classes
    per_class = Evaluation(classes=single, seconds=time.perf_counter() - filled)
    names = list(memories)
    whole = _evaluate(patches, torch.cat(list(memories.values())), names, data, names, progress)
    return MemoryResult(
        all_classes=whole,
        per_class=per_class,
        patches={name: len(memory) for name, memory in memories.items()},
        fill_seconds=filled - start,
    )


def _evaluate(
    encoder: PatchEncoder,
    memory: Tensor,
    known: Sequence[str],
    data: Path,
    classes: Sequence[str],
    progress: bool,
) -> Evaluation:
    predictor = MemoryPredictor(encoder, memory, known)
    return evaluate(predictor, data, classes=classes, progress=progress)


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    default = MemoryConfig()
    parser = argparse.ArgumentParser(
        prog="scripts/bench memory", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--encoder", default=default.encoder, help="timm name")
    parser.add_argument("--strides", type=integers, default=default.strides, metavar="8,16")
    parser.add_argument("--patches", type=int, default=default.patches, help="per class (12000)")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    options = parser.parse_args(arguments)
    try:
        result = measure(
            find_data(options.data),
            MemoryConfig(
                encoder=options.encoder,
                strides=options.strides,
                patches=options.patches,
                seed=options.seed,
            ),
            device=options.device,
        )
    except MambaADv2Error as error:
        print(f"scripts/bench memory: {error}", file=sys.stderr)
        return 2
    kept = ", ".join(f"{name} {count}" for name, count in result.patches.items())
    print(f"remembered patches: {kept}; {result.fill_seconds:.1f} s")
    print(f"\nmemory per class\n{result.per_class.table()}")
    print(f"\nmemory of all classes\n{result.all_classes.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
