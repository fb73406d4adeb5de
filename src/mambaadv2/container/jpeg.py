"""JPEG: segments up to the first scan, then compressed data up to the end marker."""

from __future__ import annotations

import re
from typing import BinaryIO

from mambaadv2.container.layout import Layout, damaged, exif_orientation, take, within
from mambaadv2.errors import ImageError

SIGNATURE = b"\xff\xd8\xff"

# Start of frame: baseline, extended, progressive, lossless, and the same in arithmetic coding.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF})
_SCAN, _END, _EXIF = 0xDA, 0xD9, 0xE1
# JFIF's and Adobe's segments say how colours are meant; other application data makes no pixel.
_KEPT = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}) | _FRAMES
_BETWEEN_SCANS = frozenset({0xC4, 0xCC, _SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# Compressed data stuffs a zero behind 0xFF; restarts and filling are no markers for us either.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

# Far more than cameras write, few enough that a hostile file cannot keep a reader busy.
_MOST_SEGMENTS = 10_000
_MOST_FILLING = 65_536
_MOST_SCANS = 100


def jpeg_layout(file: BinaryIO, size: int) -> Layout:
    """Read the segments up to the first scan. Raises `ImageError`.

    Of a camera's file with previews (MPO) this is the first picture.
    """
    frame, orientation = None, 1
    kept: list[bytes | slice] = [slice(0, 2)]
    position = 2
    for _ in range(_MOST_SEGMENTS):
        position = _next_marker(file, position)
        _, code, high, low = take(file, position, 4)
        length = high << 8 | low
        stop = position + 2 + length
        within(stop, size)
        if code in _FRAMES:
            if frame is not None:
                raise damaged("it has two frame headers")
            frame = take(file, position + 4, 6)
        elif code in _HIERARCHICAL:
            raise ImageError("hierarchical JPEG is not supported; save it as baseline JPEG")
        elif code == _EXIF and orientation == 1:
            data = take(file, position + 4, max(0, length - 2))
            orientation = exif_orientation(data) if data.startswith(b"Exif\0\0") else 1
        if code == _SCAN:
            break
        if length < 2 or not (code in _KEPT or code in _BETWEEN_SCANS):
            raise damaged(f"no JPEG segment can stand at byte {position:,}")
        if code in _KEPT:
            kept.append(slice(position, stop))
        position = stop
    else:
        raise damaged(f"it has more than {_MOST_SEGMENTS:,} segments")
    if frame is None:
        raise damaged("its pixels come before their header")
    if frame[0] != 8:
        raise ImageError(f"JPEG with {frame[0]} bits is not supported; save it with 8 bits")
    if frame[5] not in (1, 3, 4):
        raise ImageError(f"JPEG of {frame[5]} channels is not supported; save it as RGB or grey")
    return Layout(
        format="JPEG",
        width=int.from_bytes(frame[3:5], "big"),
        height=int.from_bytes(frame[1:3], "big"),
        channels=frame[5],
        bits=frame[0],
        orientation=orientation,
        pictures=((*kept, slice(position, size)),),
    )


def check_jpeg(content: bytes, layout: Layout) -> None:
    """Find the end marker: without it decoders may fill in what is missing. Raises `ImageError`.

    JPEG has no checksums: damage inside the compressed data can go unseen.
    """
    scan = layout.pictures[0][-1]
    assert isinstance(scan, slice)
    position, scans = scan.start, 0
    for _ in range(_MOST_SEGMENTS):
        scans += content[position + 1] == _SCAN
        if scans > _MOST_SCANS:
            raise damaged(f"it has more than {_MOST_SCANS} scans")
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        marker = _MARKER.search(content, position)
        if marker is None:
            raise damaged("its end marker is missing")
        position = marker.start()
        if content[position + 1] == _END:
            return
        if content[position + 1] not in _BETWEEN_SCANS:
            raise damaged(f"its pixels are broken at byte {position:,}")
    raise damaged(f"it has more than {_MOST_SEGMENTS:,} segments")


def _next_marker(file: BinaryIO, position: int) -> int:
    """Skip what some cameras leave between segments: zeros, and 0xFF as filling."""
    here = take(file, position, 2)
    if here[0] == 0xFF and here[1] not in (0x00, 0xFF):
        return position
    file.seek(position)
    marker = _MARKER.search(file.read(_MOST_FILLING))
    if marker is None:
        raise damaged(f"no JPEG segment follows at byte {position:,}")
    return position + marker.start()
