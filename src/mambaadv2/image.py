"""Pixels: the door for images and masks, resizing and PNG; colours of heat maps from next door.

Images are (H, W, 3) uint8 RGB, masks (H, W) bool with True for a defect, anomaly maps (H, W)
float32. Files may be PNG, JPEG, BMP, TIFF or WebP; the content counts, not the file name.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaadv2.container import Layout, check_content, damaged, read_layout
from mambaadv2.decode import decode
from mambaadv2.errors import ConfigError, ImageError
from mambaadv2.heat import colour_map, outline, overlay, require_rgb
from mambaadv2.names import printable

__all__ = [
    "ImageHeader",
    "Limits",
    "colour_map",
    "outline",
    "overlay",
    "png_bytes",
    "read_header",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_map",
    "write_png",
]

_MAX_PIXELS, _MAX_BYTES = "MAMBAADV2_MAX_PIXELS", "MAMBAADV2_MAX_BYTES"


@dataclass(frozen=True)
class Limits:
    """What one image file may cost; `ConfigError` unless both are whole numbers above 0.

    pixels: largest width x height, checked in the header, before decoding. The default decodes to
        half a gigabyte.
    bytes: largest file, checked before reading. The default, 1 GiB, is just above what the default
        number of pixels takes in uncompressed 16-bit RGB.
    """

    pixels: int = 170_000_000
    bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("pixels", "bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: expected a whole number above 0, got {value!r}")

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, or what MAMBAADV2_MAX_PIXELS and MAMBAADV2_MAX_BYTES say.

        Raises `ConfigError` when one of them is set to something else than a number above 0.
        """
        chosen = {}
        for field, variable in (("pixels", _MAX_PIXELS), ("bytes", _MAX_BYTES)):
            text = os.environ.get(variable)
            if text is None:
                continue
            if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
                raise ConfigError(
                    f"{variable}: expected a whole number above 0 in plain digits, got {text!r}; "
                    "correct the environment variable or unset it"
                )
            chosen[field] = int(text)
        return cls(**chosen)


@dataclass(frozen=True)
class ImageHeader:
    """What a file's header says.

    width, height: pixels as shown, after the EXIF orientation.
    format: "PNG", "JPEG", "BMP", "TIFF" or "WebP".
    channels, bits: samples per pixel in the file, alpha included, a palette's index being one;
        bits of a sample, as stored.
    frames: pages or frames of an animation; always 1, as files with more are refused.
    """

    width: int
    height: int
    format: str
    channels: int
    bits: int
    frames: int


def read_image(path: str | PathLike[str], *, limits: Limits | None = None) -> NDArray[np.uint8]:
    """Decode one image file to (H, W, 3) uint8 RGB, upright.

    | in the file | becomes |
    |---|---|
    | 8-bit grey, RGB | itself; grey is repeated in three channels |
    | 1, 2, 4 bits | 0 to the largest value becomes 0 to 255 |
    | 16-bit grey, RGB (PNG, TIFF) | divided by 257 and rounded, never clipped: equal to its 8-bit
      twin. A camera that fills only 10 or 12 of the 16 bits gives a dark picture here |
    | 12-bit grey (TIFF) | 0 to 4095 becomes 0 to 255 |
    | 32-bit float (TIFF) | times 255 and rounded; refused unless all values lie in [0, 1] |
    | 16-bit signed, 32-bit integers (TIFF) | as 16 bits; refused unless all lie in [0, 65535] |
    | grey that counts from white (TIFF) | inverted |
    | palette | looked up |
    | alpha, transparent colours | dropped; colours multiplied with alpha are divided again |
    | CMYK (JPEG, TIFF), YCbCr | converted; of 16-bit CMYK and of 16-bit colour multiplied with
      alpha the high byte, at most one level off. CMYK JPEG counts from white, as Adobe writes it |
    | colour profile, gamma | ignored |
    | EXIF orientation | applied; EXIF that cannot be read is ignored |
    | a camera's JPEG with previews (MPO) | its first picture |
    | animation, several pages | refused |
    | CIE Lab, raw sensor data, 64-bit or float colour, 8-bit signed, 12-bit JPEG | refused |

    limits: None takes `Limits.from_environment()`. Pillow's own limit does not count.

    Raises `ImageError`, naming the file: missing, not a regular file, unreadable, too large, empty,
    truncated, damaged, none of the five formats, refused above, or too big for the memory. Where
    the environment holds a limit that is none, `ConfigError`.
    """
    with _named(path):
        _, samples = _decode(path, limits)
        if samples.dtype == np.float32:
            # Written so that NaN fails too.
            if not (samples.min() >= 0 and samples.max() <= 1):
                raise ImageError(
                    f"float pixels must lie in [0, 1], found {samples.min():g} to "
                    f"{samples.max():g}; rescale the image or save it as 8 or 16 bits"
                )
            samples = np.rint(samples * np.float32(255)).astype(np.uint8)
        elif samples.dtype == np.uint16:
            samples = np.take(_eight_bit_table(), samples)
        if samples.ndim == 2:
            samples = np.repeat(samples[:, :, None], 3, axis=2)
        return np.asarray(samples, np.uint8)


def read_mask(path: str | PathLike[str], *, limits: Limits | None = None) -> NDArray[np.bool_]:
    """Decode one mask file to (H, W) bool: a pixel is defect when any grey or colour value is > 0.

    The test is made before any scaling, so a 16-bit mask may mark defects with 1, and float masks
    may hold any finite values from 0 up. Alpha is ignored. Lossy formats leave traces beside what
    was drawn, and they count. Formats, EXIF, limits and errors as in `read_image`; besides,
    16-bit kinds of which only the high byte can be had are refused.
    """
    with _named(path):
        layout, samples = _decode(path, limits)
        if layout.bits == 16 and samples.dtype == np.uint8:
            raise ImageError(
                f"16-bit {layout.format} of this kind is no mask, its faintest values cannot be "
                "read; save it as grey"
            )
        if samples.dtype == np.float32 and not (samples.min() >= 0 and samples.max() < np.inf):
            raise ImageError(
                "a float mask must hold finite values from 0 up, found "
                f"{samples.min():g} to {samples.max():g}; save it as 8-bit grey"
            )
        positive: NDArray[np.bool_] = np.asarray(samples > 0)
        return positive if samples.ndim == 2 else np.any(positive, axis=2)


def read_header(path: str | PathLike[str], *, limits: Limits | None = None) -> ImageHeader:
    """Read what the header says, without reading or decoding the pixels.

    Errors as in `read_image`, as far as a header can tell: damage among the pixels and values out
    of range show in decoding only.
    """
    allowed = Limits.from_environment() if limits is None else limits
    with _named(path), _opened(path, allowed) as (file, size):
        layout = _checked_layout(file, size, allowed)
    turned = layout.orientation >= 5
    return ImageHeader(
        width=layout.height if turned else layout.width,
        height=layout.width if turned else layout.height,
        format=layout.format,
        channels=layout.channels,
        bits=layout.bits,
        frames=layout.frames,
    )


def _decode(path: str | PathLike[str], limits: Limits | None) -> tuple[Layout, NDArray[Any]]:
    """(H, W) or (H, W, 3) samples, upright, in the file's own depth: uint8, uint16 or float32."""
    allowed = Limits.from_environment() if limits is None else limits
    with _opened(path, allowed) as (file, size):
        layout = _checked_layout(file, size, allowed)
        file.seek(0)
        content = file.read(size)
    if len(content) != size:
        raise damaged(f"it had {size:,} bytes when it was opened and now has {len(content):,}")
    check_content(content, layout)
    return layout, _upright(decode(content, layout), layout.orientation)


@contextlib.contextmanager
def _named(path: str | PathLike[str]) -> Iterator[None]:
    """Turn what is raised inside into an `ImageError` that begins with the file's name."""
    # Names may hold line breaks, or bytes that are no text at all.
    name = printable(os.fsdecode(path))
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(
            f"{name}: no such image file; it was moved or removed, or its name is wrong"
        ) from error
    except OSError as error:
        raise ImageError(
            f"{name}: cannot be opened or read ({error.strerror or error}); check the file and "
            "the right to read it"
        ) from error
    except MemoryError as error:
        raise ImageError(
            f"{name}: does not fit into memory; free some, or make the image smaller"
        ) from error


@contextlib.contextmanager
def _opened(path: str | PathLike[str], limits: Limits) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file and give its size. Anything else could wait or count for ever."""
    try:
        status = os.stat(path)
    except ValueError as error:
        raise ImageError(f"no file can have this name ({error}); correct it") from error
    _require_regular(status)
    # Again behind the opening, which must not wait if a pipe has taken the file's place meanwhile.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        _require_regular(status)
        if status.st_size > limits.bytes:
            raise ImageError(
                f"{status.st_size:,} bytes exceed the limit of {limits.bytes:,}; make the file "
                f"smaller, set {_MAX_BYTES} or pass larger limits"
            )
        yield file, status.st_size


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
    raise ImageError(f"expected an image file, found {found}; name a file that holds an image")


def _checked_layout(file: BinaryIO, size: int, limits: Limits) -> Layout:
    layout = read_layout(file, size)
    if not (layout.width and layout.height):
        raise damaged(f"an image of {layout.width} x {layout.height} pixels")
    if layout.width * layout.height > limits.pixels:
        raise ImageError(
            f"{layout.width} x {layout.height} pixels exceed the limit of {limits.pixels:,}; "
            f"resize the image, set {_MAX_PIXELS} or pass larger limits"
        )
    if layout.frames > 1:
        raise ImageError(
            f"holds {layout.frames} frames or pages, expected one; save each as its own file"
        )
    return layout


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


@functools.cache
def _eight_bit_table() -> NDArray[np.uint8]:
    """(65536,) uint8: value / 257, rounded."""
    return ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def resize_image(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 RGB to `size` = (height, width), bilinear with antialiasing.

    An image that has the size already is returned as it is, not copied.
    """
    require_rgb(rgb)
    if rgb.shape[:2] == size:
        return rgb
    height, width = size
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize an (H, W) float32 map to `size` = (height, width), bilinear.

    Pixel centres lie at half integers (`align_corners=False` in torch); shrinking averages. A map
    that has the size already is returned as it is, not copied.
    """
    if values.ndim != 2 or values.dtype != np.float32:
        raise ValueError(f"values: expected (H, W) float32, got {values.shape} {values.dtype}")
    if values.shape == size:
        return values
    height, width = size
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey uint8 as a PNG file's content."""
    buffer = io.BytesIO()
    _pillow(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: str | PathLike[str], pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB or (H, W) grey uint8 as a PNG file; the folder must exist."""
    # Level 1 is several times faster than Pillow's default and about a tenth larger.
    _pillow(pixels).save(path, format="PNG", compress_level=1)


def _pillow(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise ValueError(
            f"pixels: expected (H, W, 3) or (H, W) uint8, got {pixels.shape} {pixels.dtype}"
        )
    return Image.fromarray(pixels)
