"""Pixel metrics in one pass and constant memory, exact for scores on the grid of `grid`.

A `StreamingPool` holds three histograms: of all pixels, of defect pixels, and of defect pixels
weighted so that every region counts alike. They give AUROC, AP, F1max, IoU-max and AUPRO of the
binned scores without error, and `bounds` says within which interval each metric of the scores
themselves lies. Pools add up, in any order, to exactly what one pass gives.

A region's weight is 2^40, shared out in whole numbers: one of n pixels gives each 2^40 // n, and
the rest to its first. Sums are exact and do not drift; what the rounding does to AUPRO, at most the
mean size of the regions times 2^-40, is in its bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mambaadv2.errors import UndefinedMetricError
from mambaadv2.metrics.bootstrap import Resampling, Sampled, image_key
from mambaadv2.metrics.bounds import PixelBounds, Steps, pixel_bounds, region_area
from mambaadv2.metrics.curve import Curve
from mambaadv2.metrics.grid import Grid, key_scores, ordered_keys
from mambaadv2.metrics.ranking import Ranking, RankingMetrics, counted_metrics
from mambaadv2.metrics.region import FPR_LIMIT, check_image
from mambaadv2.metrics.replicates import PixelReplicates
from mambaadv2.metrics.spaced import Spacing, spaced_rows

# 2^20 bins: 24 MB, and 20 bits of a score if they spread over all floats.
PAGES, PAGE_BITS = 256, 12
WEIGHT_BITS = 40
MAX_REGIONS = 2 ** (62 - WEIGHT_BITS)
NAMES = ("auroc", "average_precision", "f1_max", "aupro", "iou_max")

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedMetrics:
    """The pixel metrics of the binned scores, each 0..1, with their distance to full precision."""

    auroc: float
    average_precision: float
    f1_max: float
    f1_threshold: float
    """In the unit of the maps: called at or above it, the unbinned maps have this F1."""
    iou_max: float
    """mIoU-max before its mean over classes: the best TP / (TP + FP + FN) over all thresholds."""
    aupro: float
    bounds: PixelBounds
    """Intervals that hold the metrics of the unbinned maps."""
    level: int
    """How many of a float32's lowest bits were dropped; at 0 these are full precision."""
    roc: Curve = field(repr=False)
    """As in `PixelMetrics`."""
    precision_recall: Curve = field(repr=False)

    def values(self) -> dict[str, float]:
        """The metrics by their names here, without thresholds, bounds and curves."""
        return {name: float(getattr(self, name)) for name in NAMES}


class StreamingPool:
    """The pixels of a class, image by image, in memory that does not grow with their number.

    resampling: also keep what confidence intervals need, see `sampled`; costs memory and time.
    pages, page_bits: of the `Grid`; pools that are to be merged must agree.

    >>> pool = StreamingPool()
    >>> mask = np.array([[True, False], [False, False]])
    >>> pool.add(mask, np.array([[0.9, 0.2], [0.1, 0.3]], dtype=np.float32))
    >>> found = pool.metrics()
    >>> found.aupro, found.iou_max, found.bounds.auroc, found.level
    (1.0, 1.0, (1.0, 1.0), 0)
    """

    def __init__(
        self,
        *,
        resampling: Resampling | None = None,
        pages: int = PAGES,
        page_bits: int = PAGE_BITS,
    ) -> None:
        kinds = ("all", "defect", "region")
        self.grid = Grid(pages, page_bits, dict.fromkeys(kinds, ((), np.int64)))
        self.replicates = None if resampling is None else PixelReplicates(resampling)
        self.n_images = self.n_pixels = self.n_defect = self.n_regions = 0
        self.bits = 0
        """Which of a float32's bits any score has set."""

    def add(
        self, mask: NDArray[np.bool_], scores: NDArray[np.floating], key: str | None = None
    ) -> None:
        """Take in one image: mask (H, W), all False where it is good, and map (H, W).

        scores: float16 or float32, finite. key: the image's own name, for example its path inside
        the data set, needed where there is a `resampling`; no two images may share one.

        Raises `ValueError` for wrong shapes and dtypes, a map that is not finite, a missing key and
        a mask that brings the regions above 4 million.
        """
        check_image(self.n_images, mask, scores)
        if scores.dtype.itemsize > 4:
            raise ValueError(
                f"maps must be float32 or float16; maps[{self.n_images}] is {scores.dtype}: pass "
                "`scores.astype(np.float32)`, or use `PixelPool`, which keeps every bit"
            )
        if self.replicates is not None and not key:
            raise ValueError(
                f"maps[{self.n_images}] has no key: intervals need one name for each image, the "
                "same in every run"
            )
        inside = np.flatnonzero(mask)
        weights, n_regions = _region_weights(mask) if inside.size else (np.empty(0, np.int64), 0)
        if self.n_regions + n_regions > MAX_REGIONS:
            raise ValueError(
                f"masks[{self.n_images}] brings the regions to {self.n_regions + n_regions}; their "
                f"weights add up without error to {MAX_REGIONS}: are these masks noise?"
            )
        values = scores.astype(np.float32, copy=False)
        keys = ordered_keys(values).ravel()
        at = self.grid.place(keys)
        tables = self.grid.tables
        np.add.at(tables["all"], at, 1)
        if inside.size:
            np.add.at(tables["defect"], at[inside], 1)
            np.add.at(tables["region"], at[inside], weights)
        if self.replicates is not None and key:
            self.replicates.add(image_key(key), keys, inside, weights >> (WEIGHT_BITS - 30))
        self.bits |= int(np.bitwise_or.reduce(values.view(np.uint32), axis=None))
        self.n_images += 1
        self.n_pixels += keys.size
        self.n_defect += inside.size
        self.n_regions += n_regions

    def merge(self, other: StreamingPool) -> None:
        """Add what another pool holds, which stays as it is.

        The result is the same, to the last bit, as if this one had seen all images. Raises
        `ValueError` if the two have different grids or resamplings.
        """
        ours, theirs = self.grid, other.grid
        if (ours.pages, ours.page_bits) != (theirs.pages, theirs.page_bits):
            raise ValueError(
                f"pools must have one grid; got {ours.pages} pages of 2^{ours.page_bits} bins and "
                f"{theirs.pages} of 2^{theirs.page_bits}"
            )
        if self.n_regions + other.n_regions > MAX_REGIONS:
            raise ValueError(f"the pools have more than {MAX_REGIONS} regions together")
        mine = None if self.replicates is None else self.replicates.resampling
        yours = None if other.replicates is None else other.replicates.resampling
        if mine != yours:
            raise ValueError(f"pools must have one resampling; got {mine} and {yours}")
        self.grid.absorb(other.grid)
        if self.replicates is not None and other.replicates is not None:
            self.replicates.merge(other.replicates)
        self.bits |= other.bits
        self.n_images += other.n_images
        self.n_pixels += other.n_pixels
        self.n_defect += other.n_defect
        self.n_regions += other.n_regions

    def metrics(self, *, fpr_limit: float = FPR_LIMIT) -> StreamedMetrics:
        """All pixel metrics so far; definitions in `auroc`, `average_precision`, `f1_max`, `aupro`.

        fpr_limit: of AUPRO, above 0 and at most 1. Raises `UndefinedMetricError` if no pixel is
        defective or none is good.
        """
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must be above 0 and at most 1; got {fpr_limit}")
        n_good = self.n_pixels - self.n_defect
        if not n_good or not self.n_defect:
            raise UndefinedMetricError(
                f"pixel metrics need defect pixels and good pixels; got {self.n_defect} defect "
                f"and {n_good} good pixels in {self.n_images} masks: report them as undefined"
            )
        steps = self._steps()
        parts = (part.ranking for part in steps.blocks())
        found = counted_metrics(parts, self.n_defect, n_good)
        area = region_area(steps, fpr_limit)
        return StreamedMetrics(
            auroc=found.auroc,
            average_precision=found.average_precision,
            f1_max=found.f1_max,
            f1_threshold=found.f1_threshold,
            iou_max=found.iou_max,
            aupro=area,
            bounds=self._bounds(steps, found, area, fpr_limit),
            level=self.grid.level,
            roc=found.roc,
            precision_recall=found.precision_recall,
        )

    def values(
        self, *, fpr_limit: float = FPR_LIMIT, spacing: Spacing | None = None
    ) -> dict[str, float]:
        """Each metric by its name in `StreamedMetrics`, over few thresholds where `spacing` says.

        NaN where few thresholds leave one undefined. Raises as `metrics`.
        """
        values = self.metrics(fpr_limit=fpr_limit).values()
        return values if spacing is None else values | self.spaced(spacing)

    def spaced(self, spacing: Spacing) -> dict[str, float]:
        """The metrics that `spacing` gives few thresholds, as of `spaced_rows`."""
        counts = {name: self.grid.counts(name)[None] for name in ("all", "defect", "region")}
        held = np.flatnonzero(counts["all"][0])
        parts = {name: table[:, held] for name, table in counts.items()}
        scores = key_scores(self.grid.keys_of(held))
        good = parts["all"] - parts["defect"]
        found = spaced_rows(scores, good, parts["defect"], parts["region"], spacing)
        return {name: float(row[0]) for name, row in found.items()}

    def sampled(
        self,
        *,
        fpr_limit: float = FPR_LIMIT,
        spacing: Spacing | None = None,
        values: Mapping[str, float] | None = None,
    ) -> dict[str, Sampled]:
        """Each of `values` with its replicates.

        values: what that method gave for the same arguments, where it is known.

        Replicates are counted on a coarser grid and moved so that the whole has its exact value;
        `PixelReplicates.resolution` tells by how much. Raises `ValueError` without `resampling`,
        else as `metrics`.
        """
        if self.replicates is None:
            raise ValueError("this pool has no resampling: StreamingPool(resampling=Resampling())")
        if values is None:
            values = self.values(fpr_limit=fpr_limit, spacing=spacing)
        return self.replicates.sampled(values, fpr_limit, spacing)

    def _steps(self) -> Steps:
        grid = self.grid
        defect = grid.counts("defect")[::-1]  # from the highest score on
        good = grid.counts("all")[::-1] - defect
        kept = np.flatnonzero(defect)
        hits, alarms = np.cumsum(defect[kept]), np.cumsum(good)[kept]
        keys = grid.keys_of(defect.size - 1 - kept)
        return Steps(
            ranking=Ranking(
                thresholds=key_scores(keys),
                true_positives=hits,
                false_positives=alarms,
                false_positives_above=alarms - good[kept],
            ),
            defect=defect[kept],
            n_defect=self.n_defect,
            n_good=self.n_pixels - self.n_defect,
            weights=grid.counts("region")[::-1][kept] / 2**WEIGHT_BITS,
            n_regions=self.n_regions,
        )

    def _bounds(
        self, steps: Steps, found: RankingMetrics, area: float, limit: float
    ) -> PixelBounds:
        rounding = self.n_defect / (self.n_regions * 2**WEIGHT_BITS)
        if self.bits & ((1 << self.grid.level) - 1):
            return pixel_bounds(steps, limit, rounding)
        # The bits dropped are 0 in all scores, for example because they were float16 once: those of
        # one bin are equal, and nothing is unknown about them.
        return PixelBounds(
            auroc=(found.auroc, found.auroc),
            average_precision=(found.average_precision, found.average_precision),
            f1_max=(found.f1_max, found.f1_max),
            iou_max=(found.iou_max, found.iou_max),
            aupro=(max(area - rounding, 0.0), min(area + rounding, 1.0)),
        )


def _region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Weights (N,) of the mask's N pixels, row by row, and the number of regions."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, n_regions = ndimage.label(box, structure=_EIGHT_NEIGHBOURS)
    region = labels[box]
    share, rest = np.divmod(1 << WEIGHT_BITS, np.maximum(np.bincount(region), 1))
    weights = share[region]
    first = np.empty(n_regions + 1, dtype=np.int64)
    first[region[::-1]] = np.arange(region.size)[::-1]  # of several the last is kept
    weights[first[1:]] += rest[1:]
    return weights, n_regions
