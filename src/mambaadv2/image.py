"""Pixels: decoding, masks, resizing, colour maps and PNG; the only module that handles them.

Images are (H, W, 3) uint8 RGB, masks (H, W) bool with True for a defect, anomaly maps (H, W)
float32. Files may be PNG, JPEG, BMP, TIFF or WebP; the content counts, not the file name.
"""

from __future__ import annotations

import functools
import io
import struct
import sys
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from mambaadv2.errors import ImageError

MAX_PIXELS = 170_000_000
"""Largest width x height decoded unless the caller asks for more (see `read_image`)."""

# Without this list a file named .png could be PostScript, which Pillow hands to another program.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

# Damaged files make Pillow's decoders raise any of these.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)

_COLOUR_MODES = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_GREY16_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})

# Pillow keeps the high byte of 16-bit colour; reading in the opposite byte order gives the low one.
_SWAPPED_NATIVE = "B" if sys.byteorder == "little" else "L"
_LOW_BYTE_MODE = {
    f"{bands};16{order}": f"{bands};16{swapped}"
    for bands in ("RGB", "RGBA")
    for order, swapped in (("B", "L"), ("L", "B"), ("N", _SWAPPED_NATIVE))
}

# Evenly spaced from black through violet, red and orange to pale yellow; lightness always rises.
_HEAT_POINTS = (
    (0, 0, 4),
    (31, 12, 72),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)


def read_image(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one image file to (H, W, 3) uint8 RGB, upright.

    - 16-bit grey and colour: divided by 257 and rounded, never clipped, so the picture equals its
      8-bit twin. A camera that fills only 10 or 12 of the 16 bits gives a dark picture here.
      Colour that Pillow unpacks in a rare order (grey with alpha, separate planes) keeps the high
      byte, at most one level off.
    - float32 TIFF: accepted when all values lie in [0, 1], then multiplied by 255 and rounded.
    - Alpha is dropped, palettes are looked up, CMYK is converted without its colour profile.
    - EXIF orientation is applied.

    `max_pixels` bounds width x height and is checked in the header, before decoding; Pillow's own
    limit, `PIL.Image.MAX_IMAGE_PIXELS`, holds as well.

    Raises `ImageError`, naming the file: missing, empty, damaged, not one of the formats above,
    too large, animated or several pages, or values that have no agreed 8-bit meaning.
    """
    samples = _decode(Path(path), max_pixels)
    if samples.dtype == np.float32:
        # Written so that NaN fails too.
        if not (samples.min() >= 0 and samples.max() <= 1):
            raise ImageError(
                f"{path}: float pixels must lie in [0, 1], found {samples.min():g} to "
                f"{samples.max():g}; rescale the image or save it as 8 or 16 bits"
            )
        samples = np.rint(samples * np.float32(255)).astype(np.uint8)
    elif samples.dtype == np.uint16:
        samples = np.take(_eight_bit_table(), samples)
    if samples.ndim == 2:
        samples = np.repeat(samples[:, :, None], 3, axis=2)
    return np.asarray(samples, np.uint8)


def read_mask(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Decode one mask file to (H, W) bool: a pixel is defect when any grey or colour value is > 0.

    The test is made before any scaling, so a 16-bit mask may mark defects with 1. Formats, EXIF,
    `max_pixels` and errors as in `read_image`; alpha is ignored.
    """
    samples = _decode(Path(path), max_pixels)
    positive: NDArray[np.bool_] = np.asarray(samples > 0)
    return positive if samples.ndim == 2 else np.any(positive, axis=2)


def _decode(path: Path, max_pixels: int) -> NDArray[Any]:
    """(H, W) or (H, W, 3) samples in the file's own depth: uint8, uint16 or float32."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_header(path, image, max_pixels)
            low_mode = _LOW_BYTE_MODE.get(_raw_mode(image))
            samples = _samples(path, image)
        if low_mode is not None:
            with Image.open(path, formats=_FORMATS) as image:
                _set_raw_mode(image, low_mode)
                samples = samples.astype(np.uint16) << 8 | _samples(path, image)
        return samples
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from error
    except UnidentifiedImageError as error:
        found = "an empty file" if path.stat().st_size == 0 else "something else"
        raise ImageError(
            f"{path}: expected a PNG, JPEG, BMP, TIFF or WebP image, found {found}; "
            "convert the file or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large to decode: {error}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(
            f"{path}: cannot be read as an image ({error}); "
            "if the file is truncated or damaged, copy it again or remove it"
        ) from error


def _check_header(path: Path, image: ImageFile.ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} pixels exceed the limit of {max_pixels:,}; "
            "resize the image or pass a larger max_pixels"
        )
    # An MPO file is a camera's JPEG followed by previews: its first frame is the picture.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            f"{path}: holds {frames} frames or pages, expected one; save each as its own file"
        )


def _samples(path: Path, image: ImageFile.ImageFile) -> NDArray[Any]:
    """Decode, drop alpha and turn upright."""
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if image.mode in _GREY16_MODES:
        samples = np.array(image, dtype=np.uint16)
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0:
            # Photometric "white is zero", which Pillow honours in 8 bits only.
            samples = 65535 - samples
    elif image.mode == "I":
        samples = _from_int32(path, np.asarray(image))
    elif image.mode in ("F", "L", "RGB"):
        samples = np.array(image)
    elif image.mode == "1":
        samples = np.array(image.convert("L"))
    elif image.mode in _COLOUR_MODES:
        # Pillow warns about transparency given as bytes; alpha is dropped here anyway.
        image.info.pop("transparency", None)
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
        unmultiplied = image.convert(straight) if straight else image
        samples = np.array(unmultiplied.convert("RGB"))
    else:
        raise ImageError(
            f"{path}: pixels of kind {image.mode!r} are not supported; save as RGB or grey"
        )
    return samples if orientation == 1 else _upright(samples, orientation)


def _from_int32(path: Path, samples: NDArray[np.int32]) -> NDArray[np.uint16]:
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{path}: integer pixels must lie in [0, 65535], found {low} to {high}; "
            "save the image as 8 or 16 bits without sign"
        )
    return samples.astype(np.uint16)


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply the EXIF orientation, 1 to 8; other values mean nothing and are ignored."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """The sample layout in the file, such as "RGB;16B"; "" when Pillow does not say."""
    arguments = image.tile[0].args if image.tile else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: ImageFile.ImageFile, raw_mode: str) -> None:
    tiles = []
    for tile in image.tile:
        rest = tile.args[1:] if isinstance(tile.args, tuple) else None
        tiles.append(tile._replace(args=raw_mode if rest is None else (raw_mode, *rest)))
    image.tile = tiles


@functools.cache
def _eight_bit_table() -> NDArray[np.uint8]:
    """(65536,) uint8: value / 257, rounded."""
    return ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def resize_image(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 RGB to `size` = (height, width), bilinear with antialiasing.

    An image that has the size already is returned as it is, not copied.
    """
    _require_rgb(rgb)
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


def colour_map(values: ArrayLike, low: float, high: float) -> NDArray[np.uint8]:
    """Colour (H, W) finite values as (H, W, 3) uint8: black at or below `low`, pale yellow at or
    above `high`, lightness rising between (our own table of 256 colours).

    Raises `ValueError` when `values` are not finite or `low` is not below `high`.
    """
    colours: NDArray[np.uint8] = np.take(_heat_table(), _levels(values, low, high), axis=0)
    return colours


def overlay(
    rgb: NDArray[np.uint8], values: ArrayLike, low: float, high: float, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Lay the heat of (H, W) `values` over (H, W, 3) uint8 RGB; returns a new image.

    Nothing is drawn at or below `low`. Above it the heat's opacity grows, fast at first, up to
    `opacity` (0 to 1) at `high`: an image without anomaly stays as it is.
    """
    _require_rgb(rgb)
    levels = _levels(values, low, high)
    if levels.shape != rgb.shape[:2]:
        raise ValueError(f"values: expected {rgb.shape[:2]} as the image, got {levels.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity}")
    # Fixed point with 8 bits: result = (image * (256 - weight) + heat * weight) / 256.
    weight = np.rint((np.arange(256) / 255) ** 0.7 * (256 * opacity)).astype(np.uint16)
    heat = _heat_table().astype(np.uint16) * weight[:, None] + 128
    mixed = rgb * np.take(256 - weight, levels)[:, :, None] + np.take(heat, levels, axis=0)
    return np.asarray(mixed >> 8, np.uint8)


def outline(
    rgb: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    *,
    colour: tuple[int, int, int] = (0, 255, 160),
    width: int | None = None,
) -> NDArray[np.uint8]:
    """Draw the contour of an (H, W) bool mask on a copy of (H, W, 3) uint8 RGB.

    The line runs along the mask's edge, `width` pixels to each side (default: 1 for every 256
    pixels of the shorter side, at least 1); a mask that meets the image's border is closed there.
    """
    _require_rgb(rgb)
    if mask.shape != rgb.shape[:2] or mask.dtype != np.bool_:
        raise ValueError(f"mask: expected {rgb.shape[:2]} bool, got {mask.shape} {mask.dtype}")
    steps = max(1, round(min(mask.shape) / 256)) if width is None else width
    grown, kept = mask, mask
    for _ in range(steps):
        grown, kept = _dilate(grown), ~_dilate(np.pad(~kept, 1, constant_values=True))[1:-1, 1:-1]
    drawn = rgb.copy()
    drawn[grown & ~kept] = colour
    return drawn


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


def _require_rgb(rgb: NDArray[np.uint8]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb: expected (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")


def _levels(values: ArrayLike, low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) values -> 0 at `low` to 255 at `high`, clipped and rounded."""
    array = np.asarray(values)
    low, high = float(low), float(high)
    if array.ndim != 2:
        raise ValueError(f"values: expected (H, W), got {array.shape}")
    if not (low < high and np.isfinite(high - low)):
        raise ValueError(f"low and high: expected finite low < high, got {low} and {high}")
    if not np.isfinite(array).all():
        raise ValueError("values: expected finite numbers, found NaN or infinity")
    scaled = (np.clip(array, low, high) - low) * (255 / (high - low))
    return np.asarray(np.rint(scaled), np.uint8)


@functools.cache
def _heat_table() -> NDArray[np.uint8]:
    """(256, 3) uint8: `_HEAT_POINTS` interpolated."""
    points = np.array(_HEAT_POINTS, np.float64)
    positions = np.linspace(0, 255, len(points))
    levels = np.arange(256)
    channels = [np.interp(levels, positions, points[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow by one pixel, 4-neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
