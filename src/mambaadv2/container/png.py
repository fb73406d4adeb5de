"""PNG: chunks with checksums."""

from __future__ import annotations

import struct
import zlib
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

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Colour type -> channels, bits that the standard allows.
_KINDS = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (1, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}


def png_layout(file: BinaryIO, size: int) -> Layout:
    """Read the chunks' headers up to the end of the image. Raises `ImageError`."""
    header = take(file, 8, 25)
    if header[:8] != b"\0\0\0\rIHDR" or not _checksum_fits(header):
        raise damaged("its header chunk is not what PNG asks for")
    width, height, bits, kind = struct.unpack(">IIBB", header[8:18])
    channels, depths = _KINDS.get(kind, (0, ()))
    if bits not in depths:
        raise damaged(f"PNG has no colour type {kind} with {bits} bits")
    frames, orientation = 1, 1
    kept: dict[bytes, list[slice]] = {b"PLTE": [], b"IDAT": [], b"IEND": []}
    position, chunks = 33, 0
    while not kept[b"IEND"]:
        length, name = struct.unpack(">I4s", take(file, position, 8))
        stop = position + 12 + length
        within(stop, size)
        if name in kept:
            kept[name].append(slice(position, stop))
        elif name == b"acTL" and length >= 4:
            frames = max(1, int.from_bytes(take(file, position + 8, 4), "big"))
        elif name == b"eXIf":
            orientation = exif_orientation(take(file, position + 8, min(length, MOST_EXIF_BYTES)))
        elif not (name.isalpha() and name[:1].islower()):
            raise damaged(f"a reader must understand chunk {name!r}, and PNG has none of this name")
        position, chunks = stop, chunks + 1
        if chunks > MOST_CHUNKS:
            raise damaged(f"it has more than {MOST_CHUNKS:,} chunks")
    if not kept[b"IDAT"]:
        raise damaged("it holds no pixels")
    if kind == 3 and len(kept[b"PLTE"]) != 1:
        raise damaged("a palette image needs one palette")
    return Layout(
        format="PNG",
        width=width,
        height=height,
        channels=channels,
        bits=bits,
        frames=frames,
        orientation=orientation,
        pictures=(
            (
                SIGNATURE + _header_for_pillow(header, kind, bits),
                *(kept[b"PLTE"] if kind == 3 else ()),
                *kept[b"IDAT"],
                *kept[b"IEND"],
            ),
        ),
    )


def check_png(content: bytes, layout: Layout) -> None:
    """Compare the checksums, which decoders do not look at. Raises `ImageError`."""
    view = memoryview(content)
    for part in layout.pictures[0]:
        if isinstance(part, slice) and not _checksum_fits(view[part]):
            raise damaged(f"its checksum does not fit the data at byte {part.start:,}")


def _checksum_fits(chunk: bytes | memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _header_for_pillow(header: bytes, kind: int, bits: int) -> bytes:
    """Of 16-bit grey with alpha Pillow reads only the high bytes, so it is passed off as 8-bit
    RGBA: the same bytes are then grey's high and low byte in red and green, and alpha's.
    """
    if (kind, bits) != (4, 16):
        return header
    fields = header[4:16] + b"\x08\x06" + header[18:21]
    return header[:4] + fields + struct.pack(">I", zlib.crc32(fields))
