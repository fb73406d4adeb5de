"""What `check` keeps of one image: a few numbers and a small grey picture, never the pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambaadv2.data.duplicates import cells, small_grey
from mambaadv2.data.record import Record
from mambaadv2.data.verify import read_record
from mambaadv2.errors import ImageError, Problem
from mambaadv2.image import ImageHeader, read_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One image that can be used."""

    record: Record
    header: ImageHeader
    pixels_sha256: str
    """Over width, height and the decoded RGB values: equal for the same picture in two formats."""
    file_sha256: str
    mean: float
    """Of the grey values, 0 to 255: the brightness."""
    deviation: float
    """Standard deviation of the grey values within the image, after shrinking to 256 x 256."""
    darkest: int
    brightest: int
    """The lowest and highest value of any channel, 0 to 255."""
    cells: NDArray[np.float32]
    """(1024,) for `near_groups`."""
    mask_share: float | None
    """Part of the pixels that the mask marks, 0 to 1; None without a mask."""
    mask_formats: frozenset[str]


def examine(record: Record) -> Facts | Problem:
    """Read an image and its mask once; a `Problem` when one of them cannot be used."""
    answer = read_record(record)
    if isinstance(answer, Problem):
        return answer
    image, mask = answer
    try:
        header = read_header(record.path)
        formats = {read_header(mask).format for mask in record.masks}
        with record.path.open("rb") as file:
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (ImageError, OSError) as error:
        # Readable a moment ago.
        return Problem(record.path, f"{record.path}: changed while it was read ({error})")
    pixels = hashlib.sha256(f"{image.shape[1]} {image.shape[0]} ".encode())
    pixels.update(np.ascontiguousarray(image).data)
    grey = small_grey(image)
    return Facts(
        record=record,
        header=header,
        pixels_sha256=pixels.hexdigest(),
        file_sha256=file_sha256,
        mean=float(grey.mean()),
        deviation=float(grey.std()),
        darkest=int(image.min()),
        brightest=int(image.max()),
        cells=cells(grey),
        mask_share=None if mask is None else float(mask.mean()),
        mask_formats=frozenset(formats),
    )
