"""Replicates of the pixel metrics: for each resampling of the images, its own three histograms.

They stand on a grid of 2,048 bins, where the metrics themselves have a million: with 1,000
replicates that is 52 MB. Coarse bins move a metric a little, and every replicate alike; so
replicates are moved back by what the whole loses (`resolution`), and only the spread is coarse.

Counts and weights are whole numbers below 2^53, so their sums in float64 are exact and do not
depend on the order of the images or on who counted them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mambaadv2.metrics.bootstrap import Resampling, Sampled
from mambaadv2.metrics.counted import Rows, counted_rows
from mambaadv2.metrics.grid import Grid, Keys, key_scores
from mambaadv2.metrics.spaced import Spacing, spaced_rows

PAGES, PAGE_BITS = 8, 8
BLOCK = 64  # images that wait, so that adding them is a product of matrices

KINDS = ("good", "defect", "region")


class PixelReplicates:
    """Histograms of every replicate and of every part of the jackknife."""

    def __init__(self, resampling: Resampling, *, pages: int = PAGES, page_bits: int = PAGE_BITS):
        self.resampling = resampling
        rows = resampling.replicates + resampling.groups
        tables = dict.fromkeys(KINDS, ((rows,), np.float64))
        waiting = {f"waiting {kind}": ((BLOCK,), np.float64) for kind in KINDS}
        self.grid = Grid(pages, page_bits, tables | waiting)
        self._images: list[np.uint64] = []
        self._marked: list[int] = []

    def add(
        self, image: np.uint64, keys: Keys, inside: NDArray[np.intp], weights: NDArray[np.int64]
    ) -> None:
        """Take in one image.

        image: its `image_key`. keys: (N,), `ordered_keys` of its pixels. inside: (M,), which of
        them are defect pixels. weights: (M,), their region weights, 2^30 for a region.
        """
        at = self.grid.place(keys)
        row, tables = len(self._images), self.grid.tables
        size = tables["good"].shape[-1]
        good = np.bincount(at, minlength=size)
        if inside.size:
            marked = np.bincount(at[inside], minlength=size)
            good -= marked
            tables["waiting defect"][row] = marked
            tables["waiting region"][row] = np.bincount(at[inside], weights, minlength=size)
            self._marked.append(row)
        tables["waiting good"][row] = good
        self._images.append(image)
        if len(self._images) == BLOCK:
            self._count()

    def merge(self, other: PixelReplicates) -> None:
        """Add what another holds, of the same resampling; that one's metrics stay as they are."""
        self._count()
        other._count()
        self.grid.absorb(other.grid)

    def resolution(self, values: Mapping[str, float], fpr_limit: float) -> dict[str, float]:
        """By how much the coarse grid misses each value of the fine one; see `sampled`."""
        found = self._metrics(fpr_limit)
        return {name: abs(float(found[name][0]) - value) for name, value in values.items()}

    def sampled(
        self, values: Mapping[str, float], fpr_limit: float, spacing: Spacing | None = None
    ) -> dict[str, Sampled]:
        """Each metric with its replicates, moved so that the whole has the value given."""
        found = self._metrics(fpr_limit, spacing)
        last = 1 + self.resampling.replicates
        sampled: dict[str, Sampled] = {}
        for name, value in values.items():
            moved = np.clip(found[name] + (value - found[name][0]), 0.0, 1.0)
            sampled[name] = Sampled(value, moved[1:last], moved[last:])
        return sampled

    def counts(self) -> tuple[Keys, dict[str, Rows]]:
        """Lowest keys (T,) of the bins that hold anything, rising, and each kind's rows (R, T).

        The first rows are the replicates, the last the parts of the jackknife.
        """
        self._count()
        keys, at = self.grid.bins()
        parts = self.resampling.replicates
        kept = sum(self.grid.tables[kind][parts:, at].sum(axis=0) for kind in KINDS[:2])
        some = np.flatnonzero(kept)
        return keys[some], {kind: self.grid.tables[kind][:, at[some]] for kind in KINDS}

    def _count(self) -> None:
        """Add the waiting images to every row, each as often as it is drawn there."""
        if not self._images:
            return
        images = np.array(self._images, dtype=np.uint64)
        groups = np.arange(self.resampling.groups)[:, None] == self.resampling.groups_of(images)
        weights = np.concatenate((self.resampling.weights(images), groups.astype(np.float64)))
        tables = self.grid.tables
        tables["good"] += weights @ tables["waiting good"][: images.size]
        if self._marked:
            for kind in KINDS[1:]:
                tables[kind] += weights[:, self._marked] @ tables[f"waiting {kind}"][self._marked]
        for kind in KINDS:
            tables[f"waiting {kind}"][:] = 0
        self._images.clear()
        self._marked.clear()

    def _metrics(self, fpr_limit: float, spacing: Spacing | None = None) -> dict[str, Rows]:
        """Of the whole, of each replicate, and of the whole without each part."""
        self._count()
        keys, at = self.grid.bins()
        scores = key_scores(keys)
        last = self.resampling.replicates
        tables = {kind: self.grid.tables[kind] for kind in KINDS}
        parts = {kind: table[last:, at] for kind, table in tables.items()}
        whole = {kind: table.sum(axis=0, keepdims=True) for kind, table in parts.items()}
        left_out = {kind: whole[kind] - parts[kind] for kind in KINDS}
        # Blocks of rows: a copy of all would be as large as the tables.
        drawn = (
            {kind: table[start : min(start + BLOCK, last), at] for kind, table in tables.items()}
            for start in range(0, last, BLOCK)
        )
        found = []
        for rows in chain([whole], drawn, [left_out]):
            every = counted_rows(**rows, fpr_limit=fpr_limit).by_name()
            found.append(
                every if spacing is None else every | spaced_rows(scores, **rows, spacing=spacing)
            )
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
