"""What every container has in common: the layout, and careful reading of bytes and EXIF."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from mambaadv2.errors import ImageError

# Orientation stands in the first directory; the rest may be thumbnails and makers' notes.
MOST_EXIF_BYTES = 65_536

# A file of nothing but tiny chunks would keep a reader busy for minutes.
MOST_CHUNKS = 500_000


@dataclass(frozen=True, slots=True)
class Layout:
    """The pixels of one file: how many, of what kind, and where.

    format: "PNG", "JPEG", "BMP", "TIFF" or "WebP".
    width, height: pixels as stored, before the orientation.
    channels, bits: samples per pixel, alpha and palette indices included; bits per sample.
    frames: frames of an animation or pages, at least 1.
    orientation: EXIF's 1 to 8.
    white_is_zero: samples count from white; decoders are told otherwise.
    pictures: files for a decoder, each given by its parts in order: bytes, or a slice of the file.
        One, or for TIFF with separate planes one grey picture for each.
    """

    format: str
    width: int
    height: int
    channels: int
    bits: int
    frames: int = 1
    orientation: int = 1
    white_is_zero: bool = False
    pictures: tuple[tuple[bytes | slice, ...], ...] = ((slice(None),),)


def damaged(what: str) -> ImageError:
    """Return the error for a file that ends early or contradicts itself."""
    return ImageError(f"the file is truncated or damaged: {what}; copy it again or remove it")


def take(file: BinaryIO, position: int, count: int) -> bytes:
    """Read exactly `count` bytes at `position`; raises `ImageError` where the file ends before."""
    file.seek(position)
    data = file.read(count)
    if len(data) != count:
        raise damaged(f"it ends at byte {position + len(data):,} inside its header")
    return data


def within(stop: int, size: int) -> None:
    """Raise `ImageError` unless data up to byte `stop` fit into a file of `size` bytes."""
    if stop > size:
        raise damaged(f"it should have at least {stop:,} bytes and has {size:,}")


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in EXIF data; 1 where there is none or it cannot be read.

    exif: a TIFF header with its first directory; a leading "Exif" and two zeros are skipped.
    Broken EXIF is common and makes no pixel, so it is no error.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", exif, entry)
            if (tag, kind, values) == (274, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
