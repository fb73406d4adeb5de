"""The pictures of a report, chosen while predictions pass by: few large ones, many small ones."""

from __future__ import annotations

import heapq
import io
import math
from bisect import insort
from collections.abc import Mapping

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

THUMBNAIL = 96
"""Pixels of a thumbnail's longer side."""
THUMBNAIL_BYTES = 3000
"""Largest file of a thumbnail, if any quality allows it."""
MOST_THUMBNAILS = 6000
"""Of a page: about 20 MB."""

_QUALITY = 80
_THUMBNAIL_QUALITIES = (55, 30, 10)


def thumbnail_shares(images: Mapping[str, int], most: int = MOST_THUMBNAILS) -> dict[str, int]:
    """How many thumbnails each class may have, from its number of images.

    Small classes show all of theirs, large ones share what is left evenly.

    >>> thumbnail_shares({"nut": 10, "tile": 900, "wood": 700}, most=1000)
    {'nut': 10, 'tile': 495, 'wood': 495}
    """
    shares: dict[str, int] = {}
    left = most
    for rank, (name, count) in enumerate(sorted(images.items(), key=lambda item: item[1])):
        shares[name] = min(count, left // (len(images) - rank))
        left -= shares[name]
    return {name: shares[name] for name in images}


class GalleryPicker:
    """Sees every image of a class once and keeps the pictures that a report shows.

    colour_range: where the heat colours begin and end, in multiples of the threshold.
    thumbnails: at most so many small pictures are kept, of 3 kB each: of images judged wrong first,
    then of those whose scores are nearest to the threshold.
    """

    def __init__(
        self, colour_range: tuple[float, float], thumbnails: int = MOST_THUMBNAILS
    ) -> None:
        self.colour_range, self.thumbnails = colour_range, thumbnails
        self._small: list[tuple[bool, float, int, str, bytes]] = []
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
        self._keep_thumbnail(result, rgb, values)
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
        return Gallery(
            misses=misses,
            alarms=alarms,
            examples=examples,
            thumbnails={name: content for *_, name, content in self._small},
        )

    def _keep_thumbnail(
        self, result: ImageResult, rgb: NDArray[np.uint8], values: NDArray[np.float32]
    ) -> None:
        distance = abs(math.log(max(result.ratio, 1e-12)))
        rank = (not result.right, -distance, -self._seen)
        full = len(self._small) >= self.thumbnails
        if full and (not self._small or rank <= self._small[0][:3]):
            return
        content = make_thumbnail(result, rgb, values, self.colour_range)
        put = heapq.heapreplace if full else heapq.heappush
        put(self._small, (*rank, result.name, content))


def make_figure(
    result: ImageResult,
    rgb: NDArray[np.uint8],
    values: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    colour_range: tuple[float, float],
) -> Figure:
    """Draw one image's pictures; arguments as in `GalleryPicker`."""
    size = _fitting(rgb.shape[:2], LARGEST)
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


def make_thumbnail(
    result: ImageResult,
    rgb: NDArray[np.uint8],
    values: NDArray[np.float32],
    colour_range: tuple[float, float],
) -> bytes:
    """The image with its heat as a WebP file of at most `THUMBNAIL` pixels and, if any quality
    allows it, `THUMBNAIL_BYTES`; arguments as in `GalleryPicker`."""
    size = _fitting(rgb.shape[:2], THUMBNAIL)
    # Every step-th pixel first: averaging all of a large image takes ten times as long.
    step = max(1, min(rgb.shape[:2]) // (4 * THUMBNAIL))
    relative = resize_map(values[::step, ::step], size) / np.float32(result.threshold)
    drawn = overlay(resize_image(rgb[::step, ::step], size), relative, *colour_range, opacity=0.85)
    for quality in _THUMBNAIL_QUALITIES:
        content = encoded(drawn, quality)
        if len(content) <= THUMBNAIL_BYTES:
            break
    return content


def encoded(rgb: NDArray[np.uint8], quality: int = _QUALITY) -> bytes:
    """The content of a WebP file: a photograph takes a tenth of its size as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="WEBP", quality=quality)
    return buffer.getvalue()


def _fitting(shape: tuple[int, ...], largest: int) -> tuple[int, int]:
    """(height, width) of a picture whose longer side is at most `largest`; never enlarged."""
    shrink = min(1.0, largest / max(shape))
    return max(1, round(shape[0] * shrink)), max(1, round(shape[1] * shrink))


def _shrunk(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask at `size`, never larger: a cell is marked if any of its pixels is."""
    if mask.shape == size:
        return mask
    rows, columns = np.nonzero(mask)
    small = np.zeros(size, dtype=np.bool_)
    small[rows * size[0] // mask.shape[0], columns * size[1] // mask.shape[1]] = True
    return small
