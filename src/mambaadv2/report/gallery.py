"""The pictures of a report, chosen while predictions pass by: few are held, each small."""

from __future__ import annotations

import io
from bisect import insort

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaadv2.image import colour_map, outline, overlay, resize_image, resize_map
from mambaadv2.results import Figure, Gallery, ImageResult

LARGEST = 320
"""Pixels of a picture's longer side; larger ones are shrunk."""
WORST = 4
"""Misses shown of a class, and as many false alarms."""
EXAMPLES = 1
"""Good images shown besides, and as many defects."""

_QUALITY = 80


class GalleryPicker:
    """Sees every image of a class once and keeps the pictures that a report shows.

    colour_range: where the heat colours begin and end, in multiples of the threshold.
    """

    def __init__(self, colour_range: tuple[float, float]) -> None:
        self.colour_range = colour_range
        self._misses: list[tuple[float, int, Figure]] = []
        self._alarms: list[tuple[float, int, Figure]] = []
        self._first: dict[bool, list[Figure]] = {False: [], True: []}
        self._seen = 0

    def add(
        self,
        result: ImageResult,
        rgb: NDArray[np.uint8],
        values: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """Look at one image: (H, W, 3) RGB, its map (H, W), and its mask where it is a defect."""
        self._seen += 1
        worst = self._misses if result.defect else self._alarms
        rank = result.ratio if result.defect else -result.ratio
        is_worst = len(worst) < WORST or rank < worst[-1][0]
        first = self._first[result.defect]
        # One more than the worst: then at least `EXAMPLES` of them are not among the worst.
        is_first = len(first) < WORST + EXAMPLES
        if not (is_worst or is_first):
            return
        figure = make_figure(result, rgb, values, mask, self.colour_range)
        if is_first:
            first.append(figure)
        if is_worst:
            insort(worst, (rank, self._seen, figure))
            del worst[WORST:]

    def gallery(self) -> Gallery:
        """What was kept."""
        misses = tuple(figure for _, _, figure in self._misses)
        alarms = tuple(figure for _, _, figure in self._alarms)
        shown = {figure.image.name for figure in (*misses, *alarms)}
        examples = tuple(
            figure
            for kind in (False, True)
            for figure in [f for f in self._first[kind] if f.image.name not in shown][:EXAMPLES]
        )
        return Gallery(misses=misses, alarms=alarms, examples=examples)


def make_figure(
    result: ImageResult,
    rgb: NDArray[np.uint8],
    values: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    colour_range: tuple[float, float],
) -> Figure:
    """Draw one image's pictures; arguments as in `GalleryPicker`."""
    height, width = rgb.shape[:2]
    shrink = min(1.0, LARGEST / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    small = resize_image(rgb, size)
    relative = resize_map(values, size) / np.float32(result.threshold)
    drawn = None if mask is None else outline(small, _shrunk(mask, size))
    return Figure(
        image=result,
        picture=encoded(small),
        map=encoded(colour_map(relative, 0.0, colour_range[1])),
        overlay=encoded(overlay(small, relative, *colour_range, opacity=0.7)),
        outline=None if drawn is None else encoded(drawn),
    )


def encoded(rgb: NDArray[np.uint8]) -> bytes:
    """The content of a WebP file: a photograph takes a tenth of its size as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="WEBP", quality=_QUALITY)
    return buffer.getvalue()


def _shrunk(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask at `size`, never larger: a cell is marked if any of its pixels is."""
    if mask.shape == size:
        return mask
    rows, columns = np.nonzero(mask)
    small = np.zeros(size, dtype=np.bool_)
    small[rows * size[0] // mask.shape[0], columns * size[1] // mask.shape[1]] = True
    return small
