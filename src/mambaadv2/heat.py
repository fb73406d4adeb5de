"""Heat: anomaly maps as colours, laid over the image or drawn as an outline.

Images are (H, W, 3) uint8 RGB, masks (H, W) bool, maps (H, W) numbers. These names are also found
in `mambaadv2.image`.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    require_rgb(rgb)
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
    require_rgb(rgb)
    if mask.shape != rgb.shape[:2] or mask.dtype != np.bool_:
        raise ValueError(f"mask: expected {rgb.shape[:2]} bool, got {mask.shape} {mask.dtype}")
    steps = max(1, round(min(mask.shape) / 256)) if width is None else width
    grown, kept = mask, mask
    for _ in range(steps):
        grown, kept = _dilate(grown), ~_dilate(np.pad(~kept, 1, constant_values=True))[1:-1, 1:-1]
    drawn = rgb.copy()
    drawn[grown & ~kept] = colour
    return drawn


def require_rgb(rgb: NDArray[np.uint8]) -> None:
    """Raise `ValueError` unless `rgb` is (H, W, 3) uint8."""
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
