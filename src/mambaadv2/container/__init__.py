"""What an image file says about itself: PNG, JPEG, BMP, TIFF and WebP, read without decoding.

Decoders warn about broken metadata, keep silent about missing pixels and have limits of their own.
So the containers are read and checked here, and a decoder gets a file cleaned to what makes
pixels. Errors are `ImageError` without the file's name, which `mambaadv2.image` puts in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from mambaadv2.container.bmp import bmp_layout
from mambaadv2.container.jpeg import SIGNATURE as JPEG_SIGNATURE
from mambaadv2.container.jpeg import check_jpeg, jpeg_layout
from mambaadv2.container.layout import Layout, damaged
from mambaadv2.container.png import SIGNATURE as PNG_SIGNATURE
from mambaadv2.container.png import check_png, png_layout
from mambaadv2.container.tiff import SIGNATURES as TIFF_SIGNATURES
from mambaadv2.container.tiff import tiff_layout
from mambaadv2.container.webp import webp_layout
from mambaadv2.errors import ImageError

__all__ = ["Layout", "check_content", "damaged", "pictures", "read_layout"]


def read_layout(file: BinaryIO, size: int) -> Layout:
    """Read the layout of a file of `size` bytes, seeking past the pixels.

    Raises `ImageError`: empty, none of the five formats, a header that is damaged or asks for
    something that is not supported, or data that cannot all be there.
    """
    head = file.read(12)
    if head.startswith(PNG_SIGNATURE):
        return png_layout(file, size)
    if head.startswith(JPEG_SIGNATURE):
        return jpeg_layout(file, size)
    if head.startswith(TIFF_SIGNATURES):
        return tiff_layout(file, size)
    if head.startswith(b"BM"):
        return bmp_layout(file, size)
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return webp_layout(file, size)
    found = f"a file that begins with {head!r}" if head else "an empty file"
    raise ImageError(
        f"expected a PNG, JPEG, BMP, TIFF or WebP image, found {found}; "
        "convert the file or remove it"
    )


def check_content(content: bytes, layout: Layout) -> None:
    """Check what decoders let pass: a PNG's checksums, a JPEG's end. Raises `ImageError`.

    content: the whole file.
    """
    if layout.format == "PNG":
        check_png(content, layout)
    elif layout.format == "JPEG":
        check_jpeg(content, layout)


def pictures(content: bytes, layout: Layout) -> Iterator[bytes]:
    """Yield files that hold the pixels and nothing else, as `layout.pictures` lists them."""
    view = memoryview(content)
    for parts in layout.pictures:
        yield b"".join([view[part] if isinstance(part, slice) else part for part in parts])
