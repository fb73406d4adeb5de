"""A picture of the good images that look mislabelled, for people who decide what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mambaadv2.calibrate import ClassCalibration, p_values
from mambaadv2.errors import ImageError
from mambaadv2.files import SUSPECTS, write_atomically
from mambaadv2.image import png_bytes, read_image
from mambaadv2.names import printable
from mambaadv2.tiles import PAPER, Pixels, draw_tile, fitted, write_line

TILE, LINE, GAP, COLUMNS = 220, 18, 10, 5
"""Pixels: side of a thumbnail, height of a line of text, space between; thumbnails in a row."""
MOST = 200
"""Thumbnails on the sheet: the first ones."""

TEXT = 13  # size of the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An image that was given as good and left out of its class's threshold.

    score: raw. p_value: share of the good images kept that score as high, at most.
    """

    path: Path
    class_name: str
    score: float
    p_value: float


def find_suspects(
    classes: Mapping[str, ClassCalibration],
    scores: Mapping[str, Sequence[float]],
    files: Mapping[str, Sequence[Path]],
) -> list[Suspect]:
    """What a calibration left out, by class and falling score.

    scores, files: by class those of its held-out images, in the order of the calibration.
    """
    found: list[Suspect] = []
    for name, calibrated in classes.items():
        own = scores[name]
        kept = [score for i, score in enumerate(own) if i not in calibrated.trimmed]
        found += [
            Suspect(
                path=files[name][i],
                class_name=name,
                score=own[i],
                p_value=float(p_values(kept, own[i])),
            )
            for i in calibrated.trimmed
        ]
    return found


def write_suspects(folder: Path, suspects: Sequence[Suspect]) -> None:
    """Write `suspects.png` into a run folder, in one step; nothing where there are none.

    An image that cannot be read any more is a grey square. Raises `OSError` when the folder cannot
    be written to.
    """
    if suspects:
        write_atomically(folder / SUSPECTS, png_bytes(_sheet(suspects)))


def _sheet(suspects: Sequence[Suspect]) -> NDArray[np.uint8]:
    shown = suspects[:MOST]
    columns = min(COLUMNS, len(shown))
    cell = (TILE + GAP, TILE + 3 * LINE + GAP)
    title = f"Good images that look mislabelled: {len(suspects)}"
    title += f", of which {MOST} are shown" if len(suspects) > MOST else ""
    # Wide enough for the title over a single image.
    size = (max(2, columns) * cell[0] + GAP, ceil(len(shown) / columns) * cell[1] + 2 * LINE + GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    write_line(draw, (GAP, GAP), title, size[0] - 2 * GAP, TEXT)
    for index, suspect in enumerate(shown):
        x = (index % columns) * cell[0] + GAP
        y = (index // columns) * cell[1] + 2 * LINE + GAP
        draw_tile(page, (x, y), _thumbnail(suspect.path), TILE)
        for number, text in enumerate(_words(suspect)):
            write_line(draw, (x, y + TILE + 2 + number * LINE), text, TILE, TEXT)
    return np.asarray(page)


def _words(suspect: Suspect) -> Iterator[str]:
    yield printable(suspect.path.name)
    yield printable(suspect.class_name)
    yield f"score {suspect.score:.4g}, p-value {suspect.p_value:.2g}"


def _thumbnail(path: Path) -> Pixels | None:
    try:
        return fitted(read_image(path), TILE)
    except ImageError:
        return None
