"""Image metrics of any number of images: every score is kept, 17 bytes for each."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

from mambaadv2.metrics.bootstrap import Resampling, Sampled, image_key
from mambaadv2.metrics.counted import Rows, counted_rows
from mambaadv2.metrics.ranking import RankingMetrics, image_metrics

_DRAWN = 2**18  # draws at a time: keeps the temporary arrays at 2 MB each


class ImagePool:
    """The scores of a class's images: exact metrics and their replicates.

    >>> pool = ImagePool()
    >>> for at, (defect, score) in enumerate([(False, 0.1), (True, 0.8), (False, 0.4)]):
    ...     pool.add(defect, score, key=f"{at}.png")
    >>> pool.metrics().auroc
    1.0
    """

    def __init__(self) -> None:
        self._defect, self._scores, self._keys = array("B"), array("d"), array("Q")

    @classmethod
    def of(
        cls, defect: NDArray[np.bool_], scores: NDArray[np.float64], keys: NDArray[np.uint64]
    ) -> ImagePool:
        """A pool of what `columns` gave; `ValueError` where it could not have."""
        wanted = {"defect": np.bool_, "scores": np.float64, "keys": np.uint64}
        came = {"defect": defect, "scores": scores, "keys": keys}
        for name, dtype in wanted.items():
            if came[name].dtype != dtype or came[name].shape != (scores.size,):
                raise ValueError(f"{name} is {came[name].dtype} of shape {came[name].shape}")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        pool = cls()
        pool._defect.frombytes(defect.tobytes())
        pool._scores.frombytes(scores.tobytes())
        pool._keys.frombytes(keys.tobytes())
        return pool

    @property
    def n_images(self) -> int:
        """Images taken in."""
        return len(self._scores)

    def add(self, defect: bool, score: float, key: str) -> None:
        """Take in one image.

        score: finite, any unit. key: the image's own name, the one that the pixel pool gets too, so
        that both draw the same images. Raises `ValueError` for a score that is not finite or an
        empty key.
        """
        if not math.isfinite(score):
            raise ValueError(f"scores must be finite; {key or self.n_images!r} has {score}")
        if not key:
            raise ValueError(f"image {self.n_images} has no key: intervals need a name for each")
        self._defect.append(bool(defect))
        self._scores.append(score)
        self._keys.append(int(image_key(key)))

    def merge(self, other: ImagePool) -> None:
        """Add what another pool holds, which stays as it is."""
        self._defect.extend(other._defect)
        self._scores.extend(other._scores)
        self._keys.extend(other._keys)

    def metrics(self) -> RankingMetrics:
        """AUROC, average precision and best F1 of all scores; errors as in `image_metrics`."""
        defect, scores, _ = self.columns()
        return image_metrics(defect, scores)

    def sampled(self, resampling: Resampling) -> dict[str, Sampled]:
        """Each metric with its replicates: "auroc", "average_precision", "f1_max", "iou_max".

        Raises as `metrics`.
        """
        found = self.metrics()
        values = {
            "auroc": found.auroc,
            "average_precision": found.average_precision,
            "f1_max": found.f1_max,
            "iou_max": found.iou_max,
        }
        defect, scores, keys = self.columns()
        starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))  # equal scores are one threshold

        def counted(drawn: Rows) -> dict[str, Rows]:
            good = np.add.reduceat(drawn * ~defect, starts, axis=1)
            return counted_rows(good, np.add.reduceat(drawn * defect, starts, axis=1)).by_name()

        size = max(1, _DRAWN // scores.size)
        blocks = [
            counted(resampling.weights(keys, range(at, min(at + size, resampling.replicates))))
            for at in range(0, resampling.replicates, size)
        ]
        parts = resampling.groups_of(keys)
        left_out = [
            counted(
                (parts[None] != np.arange(at, min(at + size, resampling.groups))[:, None]) * 1.0
            )
            for at in range(0, resampling.groups, size)
        ]
        return {
            name: Sampled(
                value, *(np.concatenate([x[name] for x in rows]) for rows in (blocks, left_out))
            )
            for name, value in values.items()
        }

    def columns(self) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.uint64]]:
        """Truth, scores and `image_key`s, (N,) each, by score, then key: the order of all pools."""
        defect = np.array(self._defect, dtype=np.bool_)
        scores = np.array(self._scores, dtype=np.float64)
        keys = np.array(self._keys, dtype=np.uint64)
        order = np.lexsort((keys, scores))
        return defect[order], scores[order], keys[order]
