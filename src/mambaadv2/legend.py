"""The colour scale of heat maps as a picture: which colour stands for which p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mambaadv2.calibrate import ColourScale
from mambaadv2.image import overlay
from mambaadv2.names import printable

WIDTH, BAR, ROW, MARGIN, TITLE = 640, 22, 78, 24, 56  # pixels
_PAPER, _INK, _GREY = (255, 255, 255), (40, 40, 40), 128

Marks = Sequence[tuple[float, float]]
"""(map / threshold, p-value), as of `calibrate.colour_marks`."""


def legend(scale: ColourScale, marks: Mapping[str, Marks]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a bar for each class, in the colours that heat maps have on grey.

    marks: by class. A mark outside of the scale is left out, and one too near to its neighbour.
    """
    size = (WIDTH + 2 * MARGIN, TITLE + ROW * len(marks))
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    title = "Colours of the heat maps. Above a colour marked p lies, wherever in the image,"
    draw.text((MARGIN, 8), title, fill=_INK, font=ImageFont.load_default(14))
    title = "at most a share p of good images; | is the threshold."
    draw.text((MARGIN, 28), title, fill=_INK, font=ImageFont.load_default(14))
    values = np.tile(np.linspace(scale.low, scale.high, WIDTH), (BAR, 1))
    bar = Image.fromarray(
        overlay(np.full((BAR, WIDTH, 3), _GREY, np.uint8), values, scale.low, scale.high)
    )
    for row, (name, own) in enumerate(marks.items()):
        top = TITLE + ROW * row
        draw.text((MARGIN, top), printable(name), fill=_INK, font=ImageFont.load_default(14))
        page.paste(bar, (MARGIN, top + 20))
        _mark(draw, scale, own, top + 20)
    return np.asarray(page)


def _mark(draw: ImageDraw.ImageDraw, scale: ColourScale, marks: Marks, top: int) -> None:
    font, begin = ImageFont.load_default(12), WIDTH + 2.0 * MARGIN
    x = _place(scale, 1.0)
    draw.line((x, top, x, top + BAR), fill=_PAPER, width=3)
    for ratio, p in sorted(marks, reverse=True):  # the rarest first: they decide
        if not scale.low <= ratio <= scale.high:
            continue
        x, text = _place(scale, ratio), f"{p:.2g}"
        wide = draw.textlength(text, font=font)
        if x + wide / 2 < begin - 4:
            draw.line((x, top + BAR, x, top + BAR + 5), fill=_INK)
            draw.text((x - wide / 2, top + BAR + 6), text, fill=_INK, font=font)
            begin = x - wide / 2


def _place(scale: ColourScale, ratio: float) -> float:
    """Pixels from the left."""
    return MARGIN + (ratio - scale.low) / (scale.high - scale.low) * (WIDTH - 1)
