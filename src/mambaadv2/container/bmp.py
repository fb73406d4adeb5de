"""BMP: a fixed header, a palette, rows."""

from __future__ import annotations

import struct
from typing import BinaryIO

from mambaadv2.container.layout import Layout, damaged, take, within
from mambaadv2.errors import ImageError

_RAW, _RLE8, _RLE4, _BITFIELDS = range(4)
_CHANNELS = {1: 1, 4: 1, 8: 1, 16: 3, 24: 3, 32: 4}


def bmp_layout(file: BinaryIO, size: int) -> Layout:
    """Read the header. Raises `ImageError`."""
    offset, header_size = struct.unpack("<II", take(file, 10, 8))
    if header_size == 12:
        width, height, _, bits = struct.unpack("<HHHH", take(file, 18, 8))
        compression = _RAW
    elif header_size in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, compression = struct.unpack("<iiHHI", take(file, 18, 16))
    else:
        raise damaged(f"no BMP header has {header_size:,} bytes")
    if bits not in _CHANNELS or compression > _BITFIELDS:
        raise ImageError(
            f"BMP with {bits} bits per pixel and compression {compression} is not supported; "
            "save it as PNG"
        )
    if compression in (_RAW, _BITFIELDS):
        # Rows are filled up to multiples of 4 bytes.
        row = (max(0, width) * bits + 31) // 32 * 4
        within(offset + row * abs(height), size)
    return Layout(
        format="BMP",
        width=width,
        # A negative height says that the top row comes first.
        height=abs(height),
        channels=_CHANNELS[bits],
        bits=8 if bits >= 24 else 5 if bits == 16 else bits,
    )
