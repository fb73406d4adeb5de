"""Pixels out of a file whose container has been read and checked; Pillow does the decoding.

Its plugins are called by name. `PIL.Image.open` would ask a limit on pixels that is one for the
whole process, and a file named .png could be PostScript, which Pillow hands to another program.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from mambaadv2.container import Layout, damaged, pictures
from mambaadv2.errors import ImageError

_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

_GREY16_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})

# Pillow keeps the high byte of 16-bit colour; reading in the opposite byte order gives the low one.
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTE_MODE = {
    f"{bands};16{order}": f"{bands};16{swapped}"
    for bands in ("RGB", "RGBA")
    for order, swapped in _SWAPPED.items()
}

# libtiff hands over numbers in the machine's byte order, which Pillow knows for some kinds only.
_NATIVE_MODE = {
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
}


def decode(content: bytes, layout: Layout) -> NDArray[Any]:
    """Return (H, W) or (H, W, 3) samples: uint8, uint16 or float32, as stored, without alpha.

    content: the whole file, already checked. uint8 and uint16 span their whole range, except
    that of 16-bit CMYK, and 16-bit colour multiplied with alpha, there is only the high byte, as
    uint8. float32 may hold anything. Raises `ImageError` without the file's name.
    """
    try:
        if layout.format == "WebP":
            return _webp(content, layout)
        planes = [_picture(each, layout) for each in pictures(content, layout)]
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # On damaged files Pillow's decoders raise nearly everything there is.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"cannot be decoded as a {layout.format} image ({reason}); if the file is truncated "
            "or damaged, copy it again or remove it"
        ) from error
    samples = planes[0] if len(planes) == 1 else np.stack(planes, axis=2)
    if layout.bits == 12:
        samples = samples << 4 | samples >> 8
    if layout.white_is_zero:
        white = 1 if samples.dtype == np.float32 else np.iinfo(samples.dtype).max
        samples = np.asarray(white - samples, samples.dtype)
    return samples


def _webp(content: bytes, layout: Layout) -> NDArray[np.uint8]:
    # The plugin has a limit on pixels that no argument lifts; this is the decoder behind it.
    from PIL import _webp as webp

    frame = webp.WebPAnimDecoder(content).get_next()
    if frame is None:
        raise damaged("its pixels cannot be decoded")
    # Four bytes for each pixel, with alpha or without.
    return np.array(Image.frombytes("RGB", (layout.width, layout.height), frame[0], "raw", "RGBX"))


def _picture(data: bytes, layout: Layout) -> NDArray[Any]:
    image = _pillow_file(data, layout)
    raw_mode = _raw_mode(image)
    if native := _NATIVE_MODE.get(raw_mode) if image.tile[0].codec_name == "libtiff" else None:
        _set_raw_mode(image, native)
    samples = _pixels(image)
    if (layout.format, layout.channels, layout.bits) == ("PNG", 2, 16):
        grey: NDArray[np.uint16] = samples[:, :, 0].astype(np.uint16) << 8 | samples[:, :, 1]
        return grey
    if low_mode := _LOW_BYTE_MODE.get(raw_mode):
        image = _pillow_file(data, layout)
        _set_raw_mode(image, low_mode)
        samples = samples.astype(np.uint16) << 8 | _pixels(image)
    return samples


def _pillow_file(data: bytes, layout: Layout) -> ImageFile.ImageFile:
    """Not by `Image.open`, whose limit on pixels is one for the whole process."""
    image = _PLUGINS[layout.format](io.BytesIO(data))
    if image.size != (layout.width, layout.height):
        raise damaged(f"its header says {layout.width} x {layout.height} and {image.size}")
    if layout.format == "TIFF":
        # The plugin would ask for the limit before it makes this itself.
        image.im = Image.new(image.mode, image.size).im
    return image


def _pixels(image: ImageFile.ImageFile) -> NDArray[Any]:
    image.load()
    if image.mode in _GREY16_MODES:
        return np.array(image, dtype=np.uint16)
    if image.mode == "I":
        return _from_int32(np.asarray(image))
    if image.mode in ("F", "L", "RGB"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image.convert("L"))
    straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
    return np.array((image.convert(straight) if straight else image).convert("RGB"))


def _from_int32(samples: NDArray[np.int32]) -> NDArray[np.uint16]:
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"integer pixels must lie in [0, 65535], found {low} to {high}; "
            "save the image as 8 or 16 bits without sign"
        )
    return samples.astype(np.uint16)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """The sample layout in the file, such as "RGB;16B"; "" when Pillow does not say."""
    arguments = image.tile[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: ImageFile.ImageFile, raw_mode: str) -> None:
    tiles = []
    for tile in image.tile:
        rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
        tiles.append(tile._replace(args=(raw_mode, *rest) if rest else raw_mode))
    image.tile = tiles
