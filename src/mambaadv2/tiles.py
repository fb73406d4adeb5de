"""What sheets of thumbnails are drawn from: a fitted image, its place, a line of text below it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mambaadv2.image import resize_image

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER, INK = (255, 255, 255), (40, 40, 40)
_BLANK = (232, 232, 232)


def fitted(rgb: Pixels, side: int) -> Pixels:
    """An (H, W, 3) image, its longer side `side` pixels."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    return resize_image(rgb, (max(1, round(height * scale)), max(1, round(width * scale))))


def draw_tile(page: Image.Image, place: tuple[int, int], tile: Pixels | None, side: int) -> None:
    """Put a thumbnail into the middle of the square at `place`; grey where there is none."""
    x, y = place
    if tile is None:
        ImageDraw.Draw(page).rectangle((x, y, x + side - 1, y + side - 1), fill=_BLANK)
        return
    height, width = tile.shape[:2]
    page.paste(Image.fromarray(tile), (x + (side - width) // 2, y + (side - height) // 2))


def write_line(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: Colour = INK,
) -> None:
    """Write a line, its middle left out where it is too wide: names differ at the end."""
    font = ImageFont.load_default(size)
    keep = len(text)
    shown = text
    while keep > 1 and draw.textlength(shown, font=font) > width:
        keep -= 1
        shown = f"{text[: keep // 3]}…{text[len(text) - (keep - keep // 3) :]}"
    draw.text(place, shown, fill=colour, font=font)
