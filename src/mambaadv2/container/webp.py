"""WebP: RIFF chunks."""

from __future__ import annotations

import struct
from typing import BinaryIO

from mambaadv2.container.layout import (
    MOST_CHUNKS,
    MOST_EXIF_BYTES,
    Layout,
    damaged,
    exif_orientation,
    take,
    within,
)


def webp_layout(file: BinaryIO, size: int) -> Layout:
    """Read the chunks' headers. Raises `ImageError`."""
    end = 8 + int.from_bytes(take(file, 4, 4), "little")
    within(end, size)
    shape: tuple[int, int, int] | None = None
    frames, orientation, position = 0, 1, 12
    for _ in range(MOST_CHUNKS):
        if position + 8 > end:
            break
        name, length = struct.unpack("<4sI", take(file, position, 8))
        within(position + 8 + length, end)
        # The canvas, where there is one, comes first and counts.
        if name in (b"VP8X", b"VP8 ", b"VP8L") and shape is None:
            shape = _shape(name, take(file, position + 8, 10))
        elif name == b"ANMF":
            frames += 1
        elif name == b"EXIF":
            orientation = exif_orientation(take(file, position + 8, min(length, MOST_EXIF_BYTES)))
        position += 8 + length + length % 2
    else:
        raise damaged(f"it has more than {MOST_CHUNKS:,} chunks")
    if shape is None:
        raise damaged("it holds no pixels")
    width, height, channels = shape
    return Layout(
        format="WebP",
        width=width,
        height=height,
        channels=channels,
        bits=8,
        frames=max(1, frames),
        orientation=orientation,
    )


def _shape(name: bytes, data: bytes) -> tuple[int, int, int]:
    """(width, height, channels) from the first bytes of a chunk."""
    if name == b"VP8X":
        width = 1 + int.from_bytes(data[4:7], "little")
        height = 1 + int.from_bytes(data[7:10], "little")
        return width, height, 4 if data[0] & 0x10 else 3
    if name == b"VP8L":
        fields = int.from_bytes(data[1:5], "little")
        return (fields & 0x3FFF) + 1, (fields >> 14 & 0x3FFF) + 1, 4 if fields >> 28 & 1 else 3
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF, 3
