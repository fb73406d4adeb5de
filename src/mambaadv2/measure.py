"""The metrics of one class, gathered image by image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mambaadv2.data.samples import worst_views
from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics import (
    ImagePool,
    PixelMetrics,
    RankingMetrics,
    Resampling,
    Sampled,
    Spacing,
    StreamedMetrics,
    StreamingPool,
    image_metrics,
    mean_sampled,
    pooled,
)
from mambaadv2.protocols import Protocol
from mambaadv2.results import METRICS, SEVEN, ClassResult, Curves, ImageResult

_IMAGE = {"auroc": "image_auroc", "average_precision": "image_ap", "f1_max": "image_f1max"}
_PIXEL = {
    "auroc": "pixel_auroc",
    "average_precision": "pixel_ap",
    "f1_max": "pixel_f1max",
    "aupro": "pixel_aupro",
    "iou_max": "pixel_iou_max",
}


def class_metrics(
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating],
    masks: Sequence[NDArray[np.bool_]] | None,
    maps: Sequence[NDArray[np.floating]],
) -> ClassResult:
    """All metrics of one class in full precision, from the truth about its N test images.

    labels: (N,), True for a defect. scores: (N,) of the images, any unit. masks: N of (H, W), all
    False for a good image; None where there is no ground truth. maps: N anomaly maps, each of its
    mask's size, any unit; not looked at without masks. `evaluate` needs no list of maps, and its
    numbers are within `StreamedMetrics.bounds` of these.

    Undefined metrics are None, and a note says why unless masks are missing. Raises `ValueError`
    where a metric meets scores that are not finite or shapes that do not match.

    >>> maps = [np.array([[0.1, 0.9]]), np.array([[0.2, 0.3]])]
    >>> masks = [np.array([[False, True]]), np.array([[False, False]])]
    >>> labels, scores = np.array([True, False]), np.array([0.9, 0.3])
    >>> class_metrics(labels, scores, masks, maps).metrics["mad"]
    1.0
    """
    found = _Found(int(np.count_nonzero(labels)), len(labels))
    if found.ranked():
        found.take_image(image_metrics(labels, scores))
    if masks is not None and labels.any():
        empty = sum(not mask.any() for mask, defect in zip(masks, labels, strict=True) if defect)
        found.note_empty(empty)
        pool = pooled(masks, maps)
        try:
            found.take_pixel(pool.metrics(), {})
        except UndefinedMetricError:
            found.notes.append(_NO_PIXELS)
    return found.result()


def spacing_of(protocol: Protocol) -> Spacing | None:
    """Which metrics have few thresholds by a protocol; None where none has."""
    if protocol.f1_steps is None and protocol.aupro_steps is None:
        return None
    return Spacing(
        f1_steps=protocol.f1_steps,
        aupro_steps=protocol.aupro_steps,
        aupro_stretch=protocol.aupro_stretch,
        fpr_limit=protocol.fpr_limit,
    )


class ClassMeasure:
    """Takes in the images of one class and gives their metrics by a protocol.

    resampling: for intervals, None without. pixels: whether maps and masks will come.
    """

    def __init__(self, protocol: Protocol, resampling: Resampling | None, *, pixels: bool) -> None:
        self.protocol, self.resampling = protocol, resampling
        self._images: list[ImageResult] = []
        self._ranking = ImagePool()
        self._pixels = StreamingPool(resampling=resampling) if pixels else None
        self._empty = 0

    def add(
        self,
        image: ImageResult,
        values: NDArray[np.float32] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in one image; values, mask: its map and mask (H, W) as the protocol compares them,
        mask None for a good one."""
        self._images.append(image)
        # Views of one piece are as alike as pixels of one image, and are drawn together.
        key = image.name if image.sample is None else f"{image.sample}\0piece"
        self._ranking.add(image.defect, image.ranking, key)
        if self._pixels is not None:
            assert values is not None
            self._empty += image.defect and (mask is None or not mask.any())
            good = np.zeros(values.shape, dtype=np.bool_)
            self._pixels.add(good if mask is None else mask, values, key)

    def result(self) -> ClassResult:
        """All that is defined, with notes on what is not."""
        found = _Found(sum(image.defect for image in self._images), len(self._images))
        if found.ranked():
            found.take_image(self._ranking.metrics())
            if self.resampling is not None and found.few() >= LEAST:
                found.take_sampled(self._ranking.sampled(self.resampling), _IMAGE)
        found.note_empty(self._empty)
        if self._pixels is not None:
            self._add_pixels(found, self._pixels)
        if self.resampling is not None and 0 < found.few() < FEW:
            found.notes.append(_FEW.format(found.few()))
        return self._with_pieces(found.result(tuple(self._images)))

    def _with_pieces(self, result: ClassResult) -> ClassResult:
        """The image metrics of pieces too, where several images show one."""
        if any(image.sample is None for image in self._images):
            return result
        pieces = worst_views((i.sample, i.defect, i.ranking) for i in self._images)
        if len(pieces) == len(self._images):
            return result
        pool = ImagePool()
        for piece, (defect, score) in pieces.items():
            pool.add(defect, score, f"{piece}\0piece")
        try:
            found = pool.metrics()
        except UndefinedMetricError:
            note = "all pieces are defects, or none is: metrics of pieces undefined"
            return dataclasses.replace(result, notes=(*result.notes, note))
        names = {name: metric.removeprefix("image_") for name, metric in _IMAGE.items()}
        sampled = {} if self.resampling is None else pool.sampled(self.resampling)
        return dataclasses.replace(
            result,
            samples={"n": len(pieces)}
            | {metric: float(getattr(found, name)) for name, metric in names.items()},
            sampled_pieces={metric: sampled[name] for name, metric in names.items() if sampled},
        )

    def _add_pixels(self, found: _Found, pool: StreamingPool) -> None:
        limit, spacing = self.protocol.fpr_limit, spacing_of(self.protocol)
        try:
            pixel = pool.metrics(fpr_limit=limit)
        except UndefinedMetricError:
            found.notes.append(_NO_PIXELS)
            return
        values = pixel.values()
        if spacing is not None:
            values |= pool.spaced(spacing)
        found.take_pixel(pixel, values)
        found.grid_bound = pixel.bounds.widest
        if self.resampling is not None and found.n_defect >= LEAST:
            sampled = pool.sampled(fpr_limit=limit, spacing=spacing, values=values)
            found.take_sampled(sampled, _PIXEL)


LEAST, FEW = 2, 10
"""Good images and defects: with fewer there is no interval, or a note that it is too narrow."""

_FEW = "only {} good images or defects: intervals are too narrow"
_NO_PIXELS = "no defect pixel or no good pixel: pixel metrics undefined"


@dataclass(slots=True)
class _Found:
    """What is known of a class so far."""

    n_defect: int
    n_images: int
    metrics: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(METRICS))
    sampled: dict[str, Sampled] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    image_curves: Curves | None = None
    pixel_curves: Curves | None = None
    grid_bound: float | None = None

    def few(self) -> int:
        """Good images or defects, whatever there are fewer of."""
        return min(self.n_defect, self.n_images - self.n_defect)

    def ranked(self) -> bool:
        """Whether image metrics are defined; notes why not."""
        if not self.n_defect:
            self.notes.append("no test image has a defect: metrics undefined")
        elif self.n_defect == self.n_images:
            self.notes.append("no test image is good: image metrics undefined")
        return 0 < self.n_defect < self.n_images

    def note_empty(self, count: int) -> None:
        if count:
            self.notes.append(
                f"{count} defect image(s) with an empty mask: good to the pixel metrics"
            )

    def take_image(self, image: RankingMetrics) -> None:
        for name, metric in _IMAGE.items():
            self.metrics[metric] = getattr(image, name)
        self.image_curves = Curves(roc=image.roc, precision_recall=image.precision_recall)

    def take_pixel(
        self, pixel: PixelMetrics | StreamedMetrics, values: Mapping[str, float]
    ) -> None:
        """values: of metrics that the protocol may define otherwise than `pixel` does."""
        for name, metric in _PIXEL.items():
            value = values.get(name, getattr(pixel, name))
            if math.isnan(value):
                self.notes.append(
                    f"{metric}: too few thresholds of this protocol differ: undefined"
                )
            else:
                self.metrics[metric] = value
        self.pixel_curves = Curves(roc=pixel.roc, precision_recall=pixel.precision_recall)

    def take_sampled(self, found: Mapping[str, Sampled], names: Mapping[str, str]) -> None:
        for name, metric in names.items():
            if self.metrics[metric] is not None:
                self.sampled[metric] = found[name]

    def result(self, images: tuple[ImageResult, ...] = ()) -> ClassResult:
        """The class with mAD, which needs all seven; images: every one, where they are kept."""
        seven = [self.metrics[name] for name in SEVEN]
        known = [value for value in seven if value is not None]
        self.metrics["mad"] = math.fsum(known) / 7 if len(known) == 7 else None
        parts = [self.sampled[name] for name in SEVEN if name in self.sampled]
        if len(parts) == 7:
            self.sampled["mad"] = mean_sampled(parts)
        return ClassResult(
            metrics=self.metrics,
            sampled=self.sampled,
            n_good=self.n_images - self.n_defect,
            n_defect=self.n_defect,
            notes=tuple(self.notes),
            images=images,
            image_curves=self.image_curves,
            pixel_curves=self.pixel_curves,
            grid_bound=self.grid_bound,
        )
