"""Image files to network input: batches of (B, 3, H, W) uint8 RGB, read ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaadv2.readers import Readers, readers_for


def image_batches(
    paths: Sequence[Path], size: tuple[int, int], batch_size: int
) -> Iterator[Tensor]:
    """Yield (B, 3, height, width) uint8 batches in the order of `paths`.

    Images are resized to `size` = (height, width), bilinear, their aspect not kept. One batch is
    read ahead, so memory does not grow with the number of paths. Raises `ImageError` naming a file
    that cannot be used and `WorkerError` when a process that reads died.
    """
    starts = range(0, len(paths), batch_size)
    with Readers(readers_for(len(paths))) as readers:
        futures = [readers.image(path, size) for path in paths[:batch_size]]
        for start in starts:
            ready = futures
            following = paths[start + batch_size : start + 2 * batch_size]
            futures = [readers.image(path, size) for path in following]
            yield stacked(ready)


def stacked(images: Sequence[Future[NDArray[np.uint8]]]) -> Tensor:
    """Wait for B images (H, W, 3) of one size and return them as (B, 3, H, W) uint8."""
    pixels = np.stack([image.result() for image in images])
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def to_unit_range(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32 in [0, 1], as encoders expect it."""
    return images.float() / 255.0
