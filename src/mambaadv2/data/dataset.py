"""Image files to network input: batches of (B, 3, H, W) uint8 RGB, read ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mambaadv2.image import read_image, resize_image

READERS = 2  # decoding releases the interpreter lock; two keep a network on two cores busy


def load_image(path: Path, size: tuple[int, int]) -> Tensor:
    """Read one image and resize it (bilinear, aspect not kept) to (3, height, width) uint8 RGB.

    Raises `ImageError` naming the file.
    """
    pixels = resize_image(read_image(path), size)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def image_batches(
    paths: Sequence[Path], size: tuple[int, int], batch_size: int
) -> Iterator[Tensor]:
    """Yield (B, 3, height, width) uint8 batches in the order of `paths`.

    One batch is read ahead, so memory does not grow with the number of paths.
    """
    starts = range(0, len(paths), batch_size)
    with ThreadPoolExecutor(READERS) as pool:
        futures = [pool.submit(load_image, path, size) for path in paths[:batch_size]]
        for start in starts:
            ready = futures
            following = paths[start + batch_size : start + 2 * batch_size]
            futures = [pool.submit(load_image, path, size) for path in following]
            yield torch.stack([future.result() for future in ready])


def to_unit_range(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32 in [0, 1], as encoders expect it."""
    return images.float() / 255.0
